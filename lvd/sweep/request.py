"""What a command of train.py asks for, checked before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lvd.axes import Axis
from lvd.config import TrainConfig
from lvd.errors import LvdError
from lvd.latents.format import read_info
from lvd.sweep.check import (
    data_problem,
    disk_problem,
    frames_problem,
    missing_data,
    other_configuration,
    refuse,
    weights_bytes,
)
from lvd.sweep.grid import AXES, Cell, all_cells, resolve_cells
from lvd.sweep.log import unheard
from lvd.sweep.results import read_result, read_results

if TYPE_CHECKING:  # torch is not paid for by --help
    from lvd.sweep.job import Identity

_HERE = ("basic", "joblib")  # launchers whose jobs run on this machine
_PLUGINS = {  # of our launchers, and the extra that installs it
    "joblib": ("hydra_joblib_launcher", "train"),
    "ray": ("hydra_ray_launcher", "ray"),
    "submitit_slurm": ("hydra_submitit_launcher", "slurm"),
}


@dataclass(frozen=True)
class Request:
    """A checked command: the configuration of its jobs, and the cells it asks for."""

    config: TrainConfig
    cells: list[Cell]  # none for task=trunk
    multirun: bool
    missing: dict[int, str]  # steps that cannot be read, and why; a plan alone is made all the same
    problems: list[str]

    @cached_property
    def identities(self) -> "dict[Cell, Identity]":
        from lvd.sweep.job import Job, identities

        return identities(Job.of(self.config), self.cells, self.config.detector)

    def left(self) -> list[Cell]:
        """The cells whose jobs would not be skipped."""
        from lvd.sweep.job import Job, is_done

        if self.config.force:
            return self.cells
        job = Job.of(self.config)
        return [cell for cell in self.cells if not is_done(job, self.identities[cell])]

    @property
    def grid(self) -> list[Cell]:
        return all_cells(read_info(self.config.capture_dir))


def read_request(config: TrainConfig, launcher: str, axes: Mapping[str, Axis], *, multirun: bool) -> Request:
    """Check what is asked for: `config` is that of the first job, `axes` name all of them.

    `multirun`: -m was typed.

    Raises:
        LvdError: one sentence about everything that is wrong with it.
    """
    if config.verify:
        return Request(config, [], multirun, {}, [])
    _check_launcher(launcher)
    if config.task == "trunk":
        if multirun:
            raise LvdError("task=trunk is one job: leave out -m")
        if axes:
            raise LvdError(f"task=trunk trains all categories and steps: leave out {', '.join(axes)}=")
        refuse(_trunk_problems(config) + _machine_problems(config, launcher))
        return Request(config, [], multirun, {}, [])

    if config.devices > 1:
        raise LvdError(
            f"devices={config.devices}: a detector trains on one device, and task=trunk on several; "
            "hydra/launcher=joblib, ray and submitit_slurm train several detectors at once"
        )
    for key in AXES:
        if key not in axes:
            raise LvdError(
                f"{key} is missing: give category=0..4 step=0..49 with -m, one of each, or task=trunk"
            )
    cells, problems = resolve_cells(config.capture_dir, axes["category"].parts, axes["step"].parts)
    missing = missing_data(config.capture_dir, [cell.step for cell in cells])
    problems += data_problem(missing) + _machine_problems(config, launcher)
    request = Request(config, cells, multirun, missing, problems)
    if cells and not problems:
        problems += _pretrained_problems(config, cells, elsewhere=launcher not in _HERE)
    if cells and (config.detector.pretrained is None or not problems):
        problems += _run_problems(config, request.identities[cells[0]], len(cells), multirun=multirun)
    if not (config.plan and cells):
        refuse(problems)
    return request


def check_typed_launcher(arguments: Sequence[str]) -> None:
    """Before Hydra sees them: it would say that there are no such options of the launcher.

    Raises:
        LvdError: the launcher that is typed is not installed.
    """
    for argument in arguments:
        if argument.startswith("hydra/launcher="):
            _check_launcher(argument.partition("=")[2])


def _check_launcher(name: str) -> None:
    plugin, extra = _PLUGINS.get(name, ("", ""))
    if plugin and find_spec(f"hydra_plugins.{plugin}") is None:
        raise LvdError(f"hydra/launcher={name} needs pip install 'lvd[{extra}]'")


def _run_problems(config: TrainConfig, identity: "Identity", jobs: int, *, multirun: bool) -> list[str]:
    """What the run's directory has against the jobs."""
    from lvd.detect.pretrained import Pretrained

    if identity.blocked is not None:
        return [identity.blocked]
    grid = all_cells(read_info(config.capture_dir))
    used = [] if config.force else read_results(config.run_dir, grid).values()
    pretrained = Pretrained.of(config.detector)
    if pretrained is not None:
        size = pretrained.weights_bytes
    else:
        size = weights_bytes(config.run_dir / "trunk", identity.settings)
    return other_configuration(config.run_dir, used, identity.settings) + disk_problem(
        config.run_dir, jobs, size, page=multirun
    )


def _pretrained_problems(config: TrainConfig, cells: Sequence[Cell], *, elsewhere: bool) -> list[str]:
    """What detectors of pixels need besides: their VideoMAE, and frames."""
    from lvd.detect.pretrained import Pretrained

    pretrained = Pretrained.of(config.detector)
    if pretrained is None:
        return []
    try:
        shape = pretrained.frame_shape
        _ = pretrained.identity
    except LvdError as error:
        return [str(error)]
    return frames_problem(config.capture_dir, [cell.step for cell in cells], shape, elsewhere=elsewhere)


def _trunk_problems(config: TrainConfig) -> list[str]:
    from lvd.sweep.job import identity_of

    info = read_info(config.capture_dir)
    _, problems = resolve_cells(config.capture_dir, info.category_names, ["0"])
    problems += data_problem(missing_data(config.capture_dir, range(info.stored_steps)))
    if not problems:
        identity = identity_of(config, None)
        used = [] if config.force else [read_result(config.run_dir / "trunk")]
        problems += other_configuration(config.run_dir / "trunk", used, identity.settings)
        problems += disk_problem(
            config.run_dir, 1, weights_bytes(Path("none"), identity.settings), page=False
        )
    return problems


def _machine_problems(config: TrainConfig, launcher: str) -> list[str]:
    from lvd.detect.fit import check_machine
    from lvd.sweep.job import Job

    try:
        with unheard():
            check_machine(Job.of(config).machine, elsewhere=launcher not in _HERE)
    except LvdError as error:
        return [str(error)]
    return []
