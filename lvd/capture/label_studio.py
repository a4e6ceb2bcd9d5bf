"""Label Studio (labelstud.io): tasks for a team to label there, and what it exports, read as labels.

A task shows a preview and its prompt; scores stand in its `predictions`, which Label Studio shows as what a
model thinks and never counts as an annotation, and neither does `read_export`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from lvd.capture.table import Row, Table
from lvd.errors import LvdError
from lvd.latents.format import SAFE, Sample

_CHOICES, _VIDEO = "category", "video"  # the names of the configuration's two tags
_LIKELY = 0.5  # a category with at least this score is chosen in a prediction; none: safe


def configuration(names: Sequence[str]) -> str:
    """The labeling interface (XML): a video, its prompt, and the categories and safe, with the page's keys.

    From the tenth category on, Label Studio chooses the keys.
    """
    keys = {name: str(number) for number, name in enumerate(names[:9], 1)} | {SAFE: "0"}
    choices = "\n".join(
        f"    <Choice value={quoteattr(name)}" + (f' hotkey="{keys[name]}"' if name in keys else "") + "/>"
        for name in (*names, SAFE)
    )
    return f"""<View>
  <Video name="{_VIDEO}" value="$video"/>
  <Header value="$prompt"/>
  <Choices name="{_CHOICES}" toName="{_VIDEO}" choice="multiple" showInline="true">
{choices}
  </Choices>
</View>
"""


def task(
    sample: Sample, video: str, why: str, scores: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> dict[str, Any]:
    """One task; `scores` are of each category, by their source, and every source is a prediction."""
    return {
        "data": {"video": video, "prompt": sample.prompt, "sample_id": sample.sample_id, "why": why},
        "predictions": [
            _prediction(source, {name: by[name] for name in names if name in by})
            for source, by in scores.items()
            if by
        ],
    }


def _prediction(source: str, scores: Mapping[str, float]) -> dict[str, Any]:
    chosen = [name for name, score in scores.items() if score >= _LIKELY] or [SAFE]
    highest = max(scores.values())
    return {
        "model_version": source,
        "score": highest if chosen != [SAFE] else 1 - highest,  # of what is chosen
        "result": [
            {
                "id": "suggestion",
                "type": "choices",
                "from_name": _CHOICES,
                "to_name": _VIDEO,
                "value": {"choices": chosen},
            }
        ],
    }


def read_export(path: Path) -> Table:
    """The annotations of an export in the format JSON, as a table `sample_id, category, annotator`.

    Cancelled annotations say nothing, and neither do predictions and drafts.

    Raises:
        LvdError: names the task and what is wrong with it.
    """
    try:
        tasks = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise LvdError(f"no such file: {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise LvdError(f"{path} is not readable as JSON: {' '.join(str(error).split())}") from None
    if not isinstance(tasks, list):
        raise LvdError(f"{path} is not an export of Label Studio: it holds no list of tasks")
    rows: list[Row] = []
    for number, one in enumerate(tasks, 1):
        where = f"{path} task {number}"
        try:
            sample_id, annotations = one["data"]["sample_id"], one["annotations"]
            given = [(_annotator(a), list(_choices(a["result"]))) for a in annotations if not _cancelled(a)]
        except (TypeError, KeyError, AttributeError):
            raise LvdError(
                f"{where} is not one of a task that label_studio=true wrote, exported in the format JSON "
                "(not JSON-MIN)"
            ) from None
        for annotator, choices in given:
            for choice in choices:
                rows.append(
                    Row(where, {"sample_id": str(sample_id), "category": choice, "annotator": annotator})
                )
    if not rows:
        raise LvdError(f"{path} holds no annotation")
    return Table(["sample_id", "category", "annotator"], rows)


def _cancelled(annotation: Mapping[str, Any]) -> bool:
    return bool(annotation.get("was_cancelled"))


def _annotator(annotation: Mapping[str, Any]) -> str:
    """Who made an annotation: a number, or where the export names people their address."""
    by = annotation.get("completed_by", "")
    if isinstance(by, Mapping):
        by = by.get("email") or by["id"]
    return str(by)


def _choices(result: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for one in result:
        if one["type"] == "choices" and one["from_name"] == _CHOICES:
            yield from map(str, one["value"]["choices"])
