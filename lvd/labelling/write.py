"""What `capture.py` writes for people who label: the page, the project of Label Studio, or both."""

from pathlib import Path

from lvd.labelling.label_studio import write_project
from lvd.labelling.page import print_page, write_label_page
from lvd.labelling.queue import prepare


def write_for_labelling(
    capture: Path, *, run: Path | None, suggestions: Path | None, page: bool, label_studio: bool
) -> None:
    """Order the samples by what a run or a file suggests, write what was asked for, and say where it is.

    Raises:
        LvdError: as `lvd.labelling.queue.prepare` and `lvd.labelling.label_studio.write_project` say.
    """
    queue = prepare(capture, run=run, suggestions=suggestions)
    if page:
        print_page(write_label_page(queue), queue)
    if label_studio:
        print(f"for Label Studio: {write_project(queue)}, as docs/labels.md says")
