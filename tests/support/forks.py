"""Command lines in processes of their own that Python's imports, seconds of every start, are not paid for.

They are forked from a process that has imported everything: to be killed, interrupted, or left alone. `warm`
is what it imports.
"""

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
_CONTEXT = multiprocessing.get_context("forkserver")


class Command:
    """A running command line, in a session and process group of its own; `code` is None while it runs."""

    def __init__(
        self,
        script: Path,
        arguments: Sequence[str],
        directory: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._output = directory / "output.txt"
        target = (script, list(arguments), directory, self._output, dict(environment or os.environ))
        self._process = _CONTEXT.Process(target=_run, args=target)
        with pytest.MonkeyPatch.context() as patch:  # for the process to fork from, where there is none yet
            patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{TESTS}")
            patch.setenv("OMP_NUM_THREADS", "1")
            _CONTEXT.set_forkserver_preload(["support.warm"])
            multiprocessing.forkserver.ensure_running()
        self._process.start()

    @property
    def code(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def signal_group(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid or 0, number)

    def wait(self, seconds: float = 400) -> tuple[int, str]:
        """The exit status, and all that was printed."""
        self._process.join(seconds)
        assert self.code is not None, self._output.read_text()
        return self.code, self._output.read_text()


def _run(
    script: Path, arguments: list[str], directory: Path, output: Path, environment: dict[str, str]
) -> None:
    os.setsid()
    printed = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [script.name, *arguments]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which a child of multiprocessing leaves out
