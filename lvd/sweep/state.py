"""Whether what stands in a run may be used: one answer for the plan, the sweep, its jobs and the evaluation.

A job's result is stale when its capture's latents or labels, or the trunk that it started from, are not those
of its training any more, and damaged when a file of it is not the one that it wrote. What depends on a stale
or damaged trunk is stale itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lvd.detect.files import trunk_digest
from lvd.errors import LvdError
from lvd.files import file_sha256
from lvd.sweep.grid import Cell
from lvd.sweep.results import Result, config_digest, read_result, read_results
from lvd.sweep.trained_on import TrainedOn, read_trained_on

State = Literal["done", "failed", "changed", "damaged", "to do"]
WEIGHTS = "model.safetensors"


def network_directory(job: Path, cell: Cell | None) -> Path:
    """Where a job leaves its config.json and weights; None: the trunk's."""
    return job / "detector" if cell else job


def data_digests(capture: Path) -> list[str]:
    """What all jobs on a capture depend on: digests of its latents and of its labels."""
    return [file_sha256(capture / name) for name in ("manifest.json", "samples.csv")]


def trunk_job_digest(data: Sequence[str], settings: Mapping[str, Any]) -> str:
    return config_digest(data, _digested(settings))


def cell_job_digest(data: Sequence[str], trunk: str | None, settings: Mapping[str, Any], cell: Cell) -> str:
    """`trunk` is the digest of the weights that the job starts from; None: from scratch."""
    return config_digest(data, trunk, _digested(settings), asdict(cell))


def _digested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As earlier versions wrote them, so that their jobs stay done: no schedule, and a patience."""
    without_patience = {f"{key.removesuffix('epochs')}patience": None for key in settings if ".epochs" in key}
    return without_patience | {
        key: value
        for key, value in settings.items()
        if not (key.endswith(".schedule") and value == "one_cycle")
    }


def job_state(job: Path, result: Result | None, digest: str) -> State:
    """What has become of a job: changed was done under another configuration or on other data."""
    if result is None:
        return "to do"
    if result.status == "failed":
        return "failed"
    if result.config_digest != digest:
        return "changed"
    return "damaged" if damages(job, result) else "done"


def damages(job: Path, result: Result) -> list[str]:
    """The files of a job that are not as its result.json says, a sentence about each."""
    cell = None if result.category is None else Cell(result.category, int(str(result.step)))
    written: dict[Path, str | None] = {network_directory(job, cell) / WEIGHTS: None}
    written |= {job / name: digest for name, digest in result.files.items()}
    found = []
    for path, digest in written.items():
        if not path.is_file():
            found.append(f"{path} is missing")
        elif digest is not None and file_sha256(path) != digest:
            found.append(f"{path} is damaged: it is not the file that its job wrote")
    return found


def check_trunk(run: Path, capture: Path, data: Sequence[str] | None) -> tuple[str | None, str | None]:
    """The digest of a run's trunk, None where there is none, and why it cannot be used with this data.

    `data` None: the capture that it learned from is not there any more, and cannot have changed. The trunk is
    hashed here, once for all that depend on it.
    """
    directory = run / "trunk"
    result, digest = read_result(directory), trunk_digest(directory)
    if digest is None and (result is None or result.status == "failed"):
        return None, None
    again = f"train it again with {train_command(run, capture, None)}"
    if result is None or result.status == "failed":
        return digest, f"the trunk {directory} has weights, but its job did not finish: {again}"
    damaged = damages(directory, result)
    if damaged:
        return digest, f"{damaged[0]}; {again}"
    if data is not None and result.config_digest != trunk_job_digest(data, result.settings):
        return (
            digest,
            f"the trunk {directory} was trained on other data or labels than {capture} has: {again}",
        )
    return digest, None


def train_command(run: Path, capture: Path, cells: Sequence[Cell] | None) -> str:
    """What a person types to train these cells again; None: the trunk. Settings of the run come on top."""
    run_arguments = f"name={run.name}" + (f" capture={capture.name}" if capture.name != run.name else "")
    if cells is None:
        return f"python train.py task=trunk {run_arguments}"
    categories = ",".join(dict.fromkeys(cell.category for cell in cells))
    steps = sorted({cell.step for cell in cells})
    whole = len(steps) > 1 and steps == list(range(steps[0], steps[-1] + 1))
    listed = f"{steps[0]}..{steps[-1]}" if whole else ",".join(map(str, steps))
    many = "-m " if len(cells) > 1 else ""
    return f"python train.py {many}category={categories} step={listed} {run_arguments}"


@dataclass(frozen=True)
class Usable:
    """What of a run's grid can be scored and exported, and what it learned from."""

    holes: dict[Cell, str]  # the cells without a detector, and why
    files: dict[str, str]  # SHA-256 of the files of the others, by their path below the run
    trained_on: list[TrainedOn]
    on_frames: bool  # some detectors read decoded frames


def usable(run: Path, capture: Path, cells: Iterable[Cell]) -> Usable:
    """The state of a run's cells for an evaluation on `capture`, which need not be what they learned from.

    A cell that is missing, failed or damaged is a hole. A job is held against the capture that it learned
    from where that still is, in `capture` or beside it.

    Raises:
        LvdError: detectors are stale, their trunk is stale or damaged, or it cannot be known what they
            learned from.
    """
    results = read_results(run, cells)
    homes = _Homes(capture)
    holes: dict[Cell, str] = {}
    stale: dict[Path, list[Cell]] = {}
    sound: list[tuple[Path, Result]] = []
    trunks: dict[Path, str | None] = {}
    for cell, result in results.items():
        job = run / cell.path
        if result is None or result.status == "failed":
            holes[cell] = "not trained" if result is None else f"its job failed: {result.error}"
            continue
        home = homes.of(result)
        data = homes.data(home)
        from_trunk = "detector.tuning" in result.settings
        if from_trunk and home not in trunks:
            trunks[home] = _sound_trunk(run, home, data)
        if data is not None:
            digest = cell_job_digest(data, trunks[home] if from_trunk else None, result.settings, cell)
            if digest != result.config_digest:
                stale.setdefault(home, []).append(cell)
                continue
        damaged = damages(job, result)
        if damaged:
            holes[cell] = f"{damaged[0]}; train it again with {train_command(run, home, [cell])}"
            continue
        sound.append((job, result))
    for home, of_home in stale.items():
        raise LvdError(
            f"{len(of_home)} detectors of {run} are stale, {of_home[0].path} first: they were trained on "
            f"other data or labels than {home} has, or on another trunk; train them again with "
            f"{train_command(run, home, of_home)}"
        )
    trunk = read_result(run / "trunk")
    if trunks and trunk is not None:
        sound.append((run / "trunk", trunk))
    return Usable(
        holes,
        {(j / name).relative_to(run).as_posix(): sha for j, r in sound for name, sha in r.files.items()},
        [homes.trained_on(run, r) for r in {homes.key(r): r for _, r in sound}.values()],
        any("detector.pretrained" in result.settings for _, result in sound),
    )


def usable_trunk(run: Path, capture: Path) -> Usable:
    """The same of a run's trunk, where its own outputs are the detector.

    Raises:
        LvdError: it is missing, stale or damaged.
    """
    result = read_result(run / "trunk")
    homes = _Homes(capture)
    home = capture if result is None else homes.of(result)
    _sound_trunk(run, home, homes.data(home))
    assert result is not None  # else it would not be sound
    files = {f"trunk/{name}": sha for name, sha in result.files.items()}
    return Usable({}, files, [homes.trained_on(run, result)], on_frames=False)


def _sound_trunk(run: Path, home: Path, data: Sequence[str] | None) -> str | None:
    """The digest of the trunk that a run's detectors need.

    Raises:
        LvdError: it is stale, damaged or not there.
    """
    digest, problem = check_trunk(run, home, data)
    if problem is None and digest is None:
        problem = f"{run} has no trunk, which its detectors need: {train_command(run, home, None)}"
    if problem is not None:
        raise LvdError(problem)
    return digest


class _Homes:
    """The captures that results learned from, each read once."""

    def __init__(self, capture: Path) -> None:
        self._capture = capture
        self._data: dict[Path, list[str] | None] = {}

    def of(self, result: Result) -> Path:
        """Where the capture of a result is, or was: by what is in it, whatever its name, and else by name."""
        if result.data is not None and result.data == config_digest(self.data(self._capture)):
            return self._capture
        return self._capture.parent / str(result.settings["capture"])

    def data(self, home: Path) -> list[str] | None:
        """None: there is no such capture any more."""
        if home not in self._data:
            try:
                self._data[home] = data_digests(home)
            except OSError:
                self._data[home] = None
        return self._data[home]

    def key(self, result: Result) -> str:
        return result.data if result.data is not None else str(result.settings["capture"])

    def trained_on(self, run: Path, result: Result) -> TrainedOn:
        """What a result learned from, as the run has it written down; older ones: as their capture says."""
        home = self.of(result)
        if result.data is not None:
            return read_trained_on(run, result.data)
        if self.data(home) is None:
            raise LvdError(
                f"{run} was trained on {home}, which is not there: what it learned from cannot be left out "
                f"of the rates on {self._capture}"
            )
        return TrainedOn.of(home)
