"""The labelling page: one static file beside a capture's previews, opened from disk, without a server.

Prompts and names are hostile input: they travel as JSON and are shown as text. The page loads nothing but the
previews.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lvd.capture.preview import find_preview
from lvd.files import sha256, write_atomically
from lvd.labelling.queue import Entry, Queue
from lvd.latents.format import SAFE
from lvd.report.html import render, source

FILE = "label.html"
_KEYS = "123456789qwertyiopdfgjklzxcvbnm"  # of the categories; the others have their meaning: see the page
_SHOWN_SCORES, _LOW = 3, 0.05


def write_label_page(queue: Queue) -> Path:
    """Write `label.html` into the capture's folder, in one move, and return its path."""
    page = render(
        "labelling/page.html",
        styles=["labelling/page.css"],
        scripts=[source("labelling/page.js")],
        media="img-src 'self' file:; media-src 'self' file:",
        title=f"Label {queue.capture.name}",
        capture=queue.capture.name,
        data=_data(queue),
    )
    path = queue.capture / FILE
    write_atomically(path, page)
    return path


def print_page(page: Path, queue: Queue) -> None:
    """Where the page is, and what there is to do on it."""
    total = len(queue.entries)
    todo = f"{queue.needing} of {total} samples need a label; open it in a browser"
    done = f"all {total} samples are labelled; next: python train.py task=trunk name={queue.capture.name}"
    print(f"page: {page}, {todo if queue.needing else done}")


def _data(queue: Queue) -> dict[str, Any]:
    """What the page's script works on."""
    names = queue.info.category_names
    ids = sorted(entry.sample.sample_id for entry in queue.entries)
    same = sha256(json.dumps([queue.capture.name, names, ids]).encode())
    return {
        "capture": queue.capture.name,
        "memory": f"lvd labels {queue.capture.name} {same[:16]}",  # of another capture, nothing is taken over
        "safe": SAFE,
        "categories": [
            {"name": name, "key": _KEYS[index] if index < len(_KEYS) else ""}
            for index, name in enumerate(names)
        ],
        "entries": [_entry(queue, entry) for entry in queue.entries],
    }


def _entry(queue: Queue, entry: Entry) -> dict[str, Any]:
    sample = entry.sample
    preview = find_preview(queue.capture, sample.sample_id)
    return {
        "id": sample.sample_id,
        "prompt": sample.prompt,
        "preview": None if preview is None else quote(preview.relative_to(queue.capture).as_posix()),
        "why": entry.why,
        "needs": entry.needs_label,
        "suggested": [f"{source}: {_in_words(by)}" for source, by in queue.scores(sample).items()],
    }


def _in_words(scores: Mapping[str, float]) -> str:
    """The highest scores; of low ones, only how low they are."""
    high = [(name, score) for name, score in scores.items() if score >= _LOW]
    high.sort(key=lambda item: -item[1])
    return ", ".join(f"{name} {score:.2f}" for name, score in high[:_SHOWN_SCORES]) or f"all below {_LOW}"
