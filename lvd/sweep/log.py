"""job.log: what Lightning, warnings and a failure have to say of one job, kept off the sweep's terminal."""

import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

LOG = "job.log"
_SPEAKERS = ("", "lightning.pytorch", "lightning.fabric")  # the root, and those that do not pass on to it


@contextmanager
def job_log(directory: Path) -> Iterator[None]:
    """While open, Python's log goes to `job.log` in `directory` and nowhere else, warnings too.

    An exception that leaves the block is written there with its traceback.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOG
    path.write_text("")  # the same file: a process of the job's own already prints to it
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    with ExitStack() as stack:
        stack.callback(handler.close)
        for name in _SPEAKERS:
            stack.enter_context(_only(logging.getLogger(name), handler))
        logging.captureWarnings(True)
        stack.callback(logging.captureWarnings, False)
        try:
            yield
        except BaseException as error:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(traceback.format_exception(error))
            raise


@contextmanager
def unheard() -> Iterator[None]:
    """While open, what Lightning and warnings have to say goes nowhere."""
    with ExitStack() as stack:
        for name in _SPEAKERS:
            stack.enter_context(_only(logging.getLogger(name), logging.NullHandler()))
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        yield


@contextmanager
def _only(logger: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    before, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before, propagate
