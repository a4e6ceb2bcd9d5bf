"""What a run's detectors learned from: how its latents were made, and whose prompts were in it.

`trained_on_<data>.json` in the run's directory: it outlives the capture and any change of its name or labels.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvd.errors import LvdError
from lvd.files import has_fields, read_json, write_json
from lvd.latents.format import CaptureInfo, Sample, read_info, read_samples
from lvd.latents.splits import prompt_keys
from lvd.sampling.origin import NOISED_CLIP, X_T

_NO_ORIGIN = {"format_version", "versions", "recorded_steps", "imported", "clips"}
_LATER: dict[str, Any] = {"layout_given": False, "step_caches": {}, "weights": {}}


@dataclass(frozen=True)
class TrainedOn:
    """A capture as trunk and detectors saw it."""

    capture: str  # its name then
    origin: dict[str, Any]
    trained: frozenset[str]  # keys of the prompts of the train split's labelled samples
    selected: frozenset[str]  # and of the val split's, by which settings may have been chosen

    @classmethod
    def of(cls, capture: Path) -> "TrainedOn":
        keys = {"train": set[str](), "val": set[str](), "test": set[str]()}
        for sample in read_samples(capture):
            if sample.is_labelled:  # nothing is learned from the others
                keys[sample.split] |= prompt_keys(sample)
        origin = origin_of(read_info(capture))
        return cls(capture.name, origin, frozenset(keys["train"]), frozenset(keys["val"]))

    def other_origin(self, info: CaptureInfo) -> list[str]:
        """The fields of capture.json in which the latents of another capture were made differently."""
        here, there = origin_of(info), self.origin
        differ = {key for key in here | there if _field(here, key) != _field(there, key)}
        if not (here.get("weights") and there.get("weights")):  # not known of one of them
            differ.discard("weights")
        # What is learned from clips is meant for what is sampled.
        if (there["x0_from"], here["x0_from"]) == (NOISED_CLIP, X_T):
            differ.discard("x0_from")
        return sorted(differ - {"noise_levels"})  # they follow from the others


def origin_of(info: CaptureInfo) -> dict[str, Any]:
    """Everything in capture.json that its latents depend on, and the names of the categories."""
    origin = {key: value for key, value in info.fields().items() if key not in _NO_ORIGIN}
    as_stored: dict[str, Any] = json.loads(json.dumps(origin))
    return as_stored


def _field(origin: dict[str, Any], name: str) -> Any:
    """A field of an origin; one that earlier versions did not write has the value that it had then."""
    return origin.get(name, _LATER.get(name))


def seen(samples: Iterable[Sample], keys: frozenset[str]) -> list[bool]:
    """Which samples share a prompt with those that the keys are of."""
    return [not keys.isdisjoint(prompt_keys(sample)) for sample in samples]


def write_trained_on(run: Path, capture: Path, data: str) -> None:
    """Write it down, once for each state of a capture that jobs of the run learn from."""
    path = run / f"trained_on_{data}.json"
    if not path.is_file():
        learned = TrainedOn.of(capture)
        write_json(
            path,
            {**vars(learned), "trained": sorted(learned.trained), "selected": sorted(learned.selected)},
        )


def read_trained_on(run: Path, data: str) -> TrainedOn:
    """Raises: LvdError, when the file is missing or is not one."""
    path = run / f"trained_on_{data}.json"
    raw = read_json(
        path, missing=f"{path} is missing: what the run learned from cannot be known, train it again"
    )
    if not has_fields(raw, TrainedOn) or not isinstance(raw["origin"], dict):
        raise LvdError(f"{path} does not say what the run learned from: train it again")
    return TrainedOn(
        str(raw["capture"]), raw["origin"], frozenset(raw["trained"]), frozenset(raw["selected"])
    )
