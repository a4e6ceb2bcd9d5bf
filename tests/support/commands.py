"""The commands, run in the tests' own process, and what they leave for wandb."""

import json
import runpy
import struct
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from lvd.axes import read_axes
from lvd.config import TrainConfig
from lvd.sweep.grid import AXES
from lvd.sweep.request import Request, read_request
from lvd.typed import typed

ROOT = Path(__file__).parents[2]


class Ran(NamedTuple):
    """What a command line came to."""

    code: int
    out: str
    err: str


class Shell:
    """Runs a command's own `__main__` in this process, in a directory of its own: no imports to wait for.

    The command is a file, as in `python train.py`, or a module, as in `python -m lvd.guard.audit`.
    """

    def __init__(
        self, script: str, directory: Path, patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.script, self.directory, self._patch, self._capfd = script, directory, patch, capfd
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("COLUMNS", "200")
        for name in ("HYDRA_FULL_ERROR", "TQDM_DISABLE", "WANDB_SILENT"):  # set by a command; restored after
            patch.setenv(name, "1")

    def __call__(self, *arguments: str | Path) -> Ran:
        self._patch.chdir(self.directory)
        self._patch.setattr(sys, "argv", [self.script, *map(str, arguments)])
        self._capfd.readouterr()
        code = 0
        try:
            if self.script.endswith(".py"):
                runpy.run_path(str(ROOT / self.script), run_name="__main__")
            else:
                runpy.run_module(self.script, run_name="__main__")
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        finally:
            GlobalHydra.instance().clear()
        return Ran(code, *self._capfd.readouterr())

    @property
    def run_dir(self) -> Path:
        return self.directory / "runs" / "tiny"

    def results(self) -> dict[str, dict[str, Any]]:
        return {
            str(path.parent.relative_to(self.run_dir)): json.loads(path.read_text())
            for path in sorted(self.run_dir.glob("*/step_*/result.json"))
        }


def asked(*arguments: str) -> Request:
    """What `train.py -m` makes of settings, checked; nothing runs."""
    axes, settings = read_axes(arguments, AXES)
    first = [*settings, *(f"{key}={axis.first}" for key, axis in axes.items())]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = typed(compose("train", first), TrainConfig)
    return read_request(config, "basic", axes, multirun=True)


def spoil(shard: Path) -> None:
    """Damage that only reading the file brings to light: its size stays."""
    shard.write_bytes(bytes(shard.stat().st_size))


def wandb_records(directory: Path) -> list[Any]:
    """Everything in the one offline run of a finished job, read back from its .wandb file, a LevelDB log.

    wandb's service writes the end of it when it comes to it.
    """
    deadline = time.monotonic() + 60
    records: list[Any] = []
    while not any(record.WhichOneof("record_type") == "exit" for record in records):
        assert time.monotonic() < deadline, f"no end in the run of {directory}"
        time.sleep(0.05)
        records = _records_so_far(directory)
    return records


def _records_so_far(directory: Path) -> list[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    data, position, whole, records = path.read_bytes(), 7, b"", []
    while position < len(data):
        if (left := -position % 32768) < 7:  # a header never crosses a block
            position += left
        if position + 7 > len(data):
            break
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if position + 7 + length > len(data):  # it is being written
            break
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # full, last
            records.append(Record.FromString(whole))
            whole = b""
    return records
