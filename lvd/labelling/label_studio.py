"""Write a capture as a project of Label Studio: the interface, and the tasks with their predictions."""

import json
from pathlib import Path
from urllib.parse import quote

from lvd.capture.label_studio import configuration, task
from lvd.capture.preview import find_preview
from lvd.errors import LvdError
from lvd.files import write_atomically
from lvd.labelling.queue import Queue

FOLDER = "label_studio"
_LOCAL_FILES = "/data/local-files/?d="  # below Label Studio's LOCAL_FILES_DOCUMENT_ROOT, the captures' folder


def write_project(queue: Queue) -> Path:
    """Write `label_studio/config.xml` and `tasks.json`, in the queue's order, and return the folder.

    Raises:
        LvdError: a sample has no preview.
    """
    names, folder = queue.info.category_names, queue.capture / FOLDER
    tasks = []
    for entry in queue.entries:
        preview = find_preview(queue.capture, entry.sample.sample_id)
        if preview is None:
            raise LvdError(f"sample {entry.sample.sample_id} of {queue.capture} has no preview")
        video = _LOCAL_FILES + quote(preview.relative_to(queue.capture.parent).as_posix())
        tasks.append(task(entry.sample, video, entry.why, queue.scores(entry.sample), names))
    write_atomically(folder / "config.xml", configuration(names).encode())
    write_atomically(folder / "tasks.json", (json.dumps(tasks, indent=1) + "\n").encode())
    return folder
