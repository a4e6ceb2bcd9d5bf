"""From a command line to jobs: what train.py was asked to run, checked before Hydra starts anything."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lvd.config import TrainConfig, typed
from lvd.detect.rows import left_out
from lvd.errors import LvdError
from lvd.latents import disk
from lvd.latents.format import read_info, read_samples
from lvd.sweep.check import (
    data_problem,
    disk_problem,
    frames_problem,
    missing_data,
    other_configuration,
    refuse,
    weights_bytes,
)
from lvd.sweep.grid import AXES, Axis, Cell, read_axes, resolve_cells
from lvd.sweep.log import unheard
from lvd.sweep.process import STOP
from lvd.sweep.progress import print_failures, print_plan, print_trunk_plan, watch
from lvd.sweep.results import read_result, read_results

if TYPE_CHECKING:  # torch is not paid for by --help
    from lvd.sweep.job import Identity

_MULTIRUN = ("-m", "--multirun")
_HERE = ("basic", "joblib")  # launchers whose jobs run on this machine
_PLUGINS = {  # of our launchers, and the extra that installs it
    "joblib": ("hydra_joblib_launcher", "train"),
    "ray": ("hydra_ray_launcher", "ray"),
    "submitit_slurm": ("hydra_submitit_launcher", "slurm"),
}


@dataclass(frozen=True)
class Request:
    """A checked command line: the configuration, the cells it asks for, and the other arguments."""

    arguments: list[str]  # for Hydra, without the axes
    config: TrainConfig
    cells: list[Cell]  # none for task=trunk
    multirun: bool
    missing: dict[int, str]  # steps that cannot be read, and why; a plan alone is made all the same
    problems: list[str]

    @cached_property
    def identities(self) -> "dict[Cell, Identity]":
        from lvd.sweep.job import Job, identities

        return identities(Job.of(self.config), self.cells, self.config.detector)

    def print_plan(self) -> None:
        """The grid, the state of its jobs, and what stands in the way of a sweep.

        Raises:
            LvdError: lists what stands in the way.
        """
        from lvd.sweep.job import identity_of
        from lvd.sweep.state import job_state

        run = self.config.run_dir
        self._print_left_out()
        if not self.cells:
            result = read_result(run / "trunk")
            found = job_state(run / "trunk", result, identity_of(self.config, None).config_digest)
            print_trunk_plan(run, result, "changed" if self.config.force and found == "done" else found)
            return
        results = read_results(run, self.cells)
        states: dict[Cell, str] = {
            cell: job_state(run / cell.path, result, self.identities[cell].config_digest)
            for cell, result in results.items()
        }
        if self.config.force:
            states = {cell: "changed" if name == "done" else name for cell, name in states.items()}
        states = {cell: "data missing" if cell.step in self.missing else states[cell] for cell in states}
        print_plan(run, results, states)
        refuse(self.problems)

    def left(self) -> list[Cell]:
        """The cells whose jobs would not be skipped."""
        from lvd.sweep.job import Job, is_done

        if self.config.force:
            return self.cells
        job = Job.of(self.config)
        return [cell for cell in self.cells if not is_done(job, self.identities[cell])]

    def run(self, job: Callable[[], None]) -> str | None:
        """Let Hydra run the jobs that are left, with the sweep's progress on show.

        Returns why the launcher gave up before its time, when it did: a process that dies with a job may end
        its waiting. What became of the jobs is read from their results then, like everything else.
        """
        left = self.left() if self.cells else []
        if self.cells and not left:
            return None
        self._print_left_out()
        stop = self.config.run_dir / STOP
        stop.unlink(missing_ok=True)
        sys.argv[1:] = [*self.arguments, *_axes_of(left)]
        with self._watch(left), _composed_once():
            try:
                with disk.errors_as_sentences(self.config.run_dir):
                    job()
            except (HydraException, OmegaConfBaseException):
                raise
            except LvdError as error:
                if not self.multirun:
                    raise
                return str(error)
            except SystemExit:
                if not stop.exists():  # else the end of a sweep that fails fast
                    raise
            except Exception as error:
                if not self.multirun:
                    raise
                first, *_ = str(error).splitlines() or [""]
                return f"{type(error).__name__}: {first}"
            finally:
                stop.unlink(missing_ok=True)
        return None

    def _print_left_out(self) -> None:
        note = left_out(read_samples(self.config.capture_dir))
        if note is not None:
            print(note)

    def _watch(self, left: Sequence[Cell]) -> AbstractContextManager[None]:
        """Say what the detectors start from, and show the sweep's progress."""
        if not self.cells:
            return nullcontext()
        from lvd.detect.detector_training import starting_trunk

        trunk = starting_trunk(self.config.run_dir, self.config.detector.init)
        kind = "heads on the trunk" if self.config.detector.tuning == "head" else "tuned copies of the trunk"
        if self.config.detector.pretrained is not None:
            kind = f"each {self.config.detector.pretrained} tuned on decoded frames"
        elif trunk is None:
            kind = "trained from scratch (no trunk)"
        print(f"{len(self.cells)} detectors, {kind}")
        if len(left) < len(self.cells):
            print(f"{len(self.cells) - len(left)} of them are done")
        if not self.multirun:
            return nullcontext()
        return watch(self.config.run_dir, left, _grid(self.config))

    def print_outcome(self) -> int:
        """What became of the jobs; returns how many did not get done."""
        from lvd.sweep.state import job_state

        run = self.config.run_dir
        if self.multirun:
            results = {
                cell: result
                if job_state(run / cell.path, result, self.identities[cell].config_digest)
                in ("done", "failed")
                else None
                for cell, result in read_results(run, self.cells).items()
            }
            done = [result for result in results.values() if result is not None and result.status == "done"]
            if done:
                mean = sum(result.metrics["auroc"] for result in done) / len(done)
                print(f"{len(done)} of {len(results)} detectors done, mean val AUROC {mean:.3f}")
                if (run / "index.html").is_file():
                    print(f"page: {run / 'index.html'}")
            return print_failures(run, results, stopped=self.config.fail_fast)

        directory = run / (self.cells[0].path if self.cells else "trunk")
        result = read_result(directory)
        if result is None or result.status == "failed":
            raise LvdError("the job did not finish" if result is None else str(result.error))
        metrics = ", ".join(f"{name} {value:.3f}" for name, value in sorted(result.metrics.items()))
        print(f"{directory}: {result.seconds:.1f} s, from {result.started_from}; val: {metrics}")
        return 0


def read_request(arguments: Sequence[str], conf: Path, config_name: str) -> Request | None:
    """Read and check a command line of train.py; None when it asks Hydra for help or information.

    Raises:
        LvdError: one sentence about everything that is wrong with it.
    """
    multirun = any(argument in _MULTIRUN for argument in arguments)
    if any(argument.startswith("-") and argument not in _MULTIRUN for argument in arguments):
        return None
    axes, others = read_axes(arguments)
    overrides = [argument for argument in others if argument not in _MULTIRUN]
    config, launcher = _first_config(overrides, axes, conf, config_name)
    if config.verify:
        return Request(others, config, [], multirun, {}, [])
    _check_launcher(launcher)
    if config.task == "trunk":
        if multirun:
            raise LvdError("task=trunk is one job: leave out -m")
        if axes:
            raise LvdError(f"task=trunk trains all categories and steps: leave out {', '.join(axes)}=")
        refuse(_trunk_problems(config) + _machine_problems(config, launcher))
        return Request(others, config, [], multirun, {}, [])

    for key in AXES:
        if key not in axes:
            raise LvdError(
                f"{key} is missing: give category=0..4 step=0..49 with -m, one of each, or task=trunk"
            )
        if len(axes[key]) > 1 and not multirun:
            raise LvdError(f"{axes[key].typed} names {len(axes[key])} jobs: add -m")
    cells, problems = resolve_cells(config.capture_dir, axes["category"].parts, axes["step"].parts)
    missing = missing_data(config.capture_dir, [cell.step for cell in cells])
    problems += data_problem(missing) + _machine_problems(config, launcher)
    request = Request(others, config, cells, multirun, missing, problems)
    if cells and not problems:
        problems += _pretrained_problems(config, cells, elsewhere=launcher not in _HERE)
    if cells and (config.detector.pretrained is None or not problems):
        problems += _run_problems(config, request.identities[cells[0]], len(cells), multirun=multirun)
    if not (config.plan and cells):
        refuse(problems)
    return request


def typed_choices_win(arguments: Sequence[str], conf: Path, config_name: str) -> list[str]:
    """A command line whose choices, encoder=base, hold against an experiment's values, encoder.width=32.

    To Hydra, an experiment comes after the groups, so that its values are laid over theirs whoever chose from
    them; only single settings that are typed come later. So a choice that is typed takes its group's values
    along, ahead of those settings.
    """
    choices = {}
    for argument in arguments:
        key, equals, name = argument.partition("=")
        if equals and re.fullmatch(r"[\w-]+", name) and (conf / key).is_dir():
            choices[key] = argument
    if choices.pop("experiment", None) is None:
        return list(arguments)
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        cfg = compose(config_name, list(choices.values()))
    values = []  # one by one: of encoder={...} encoder=base, a sweep would keep the last
    for key in choices:
        if isinstance(group := cfg.get(key), DictConfig):
            container: Any = OmegaConf.to_container(group)
            values += [f"{key}.{name}={_written(value)}" for name, value in container.items()]
    first = next(place for place, text in enumerate(arguments) if "=" in text and not text.startswith("-"))
    return [*arguments[:first], *values, *arguments[first:]]


def _written(value: Any) -> str:
    """A value as Hydra's command line has it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_written(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def worker_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line of capture.py for Hydra: `worker=0..3` as a plain list, which it sweeps.

    Raises:
        LvdError: several workers without -m.
    """
    axes, others = read_axes(arguments, ("worker",))
    if "worker" not in axes:
        return others
    workers = axes["worker"]
    if len(workers) > 1 and not any(argument in _MULTIRUN for argument in arguments):
        raise LvdError(f"{workers.typed} names {len(workers)} processes: add -m")
    return [*others, f"worker={','.join(workers.values())}"]


def _run_problems(config: TrainConfig, identity: "Identity", jobs: int, *, multirun: bool) -> list[str]:
    """What the run's directory has against the jobs."""
    if identity.blocked is not None:
        return [identity.blocked]
    used = [] if config.force else read_results(config.run_dir, _grid(config)).values()
    from lvd.detect.pretrained import Pretrained

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


def _check_launcher(name: str) -> None:
    plugin, extra = _PLUGINS.get(name, ("", ""))
    if plugin and find_spec(f"hydra_plugins.{plugin}") is None:
        raise LvdError(f"hydra/launcher={name} needs pip install 'lvd[{extra}]'")


def _grid(config: TrainConfig) -> list[Cell]:
    """All cells that a run on this capture can have."""
    info = read_info(config.capture_dir)
    return [Cell(name, step) for name in info.category_names for step in range(info.stored_steps)]


def _axes_of(left: Sequence[Cell]) -> list[str]:
    """What makes Hydra sweep the categories and the steps that have jobs left, or run the one there is."""
    values = {
        "category": dict.fromkeys(cell.category for cell in left),
        "step": dict.fromkeys(str(cell.step) for cell in left),
    }
    return [f"{key}={','.join(values[key])}" for key in AXES] if left else []


@contextmanager
def _composed_once() -> Iterator[None]:
    """Hydra composes each job's configuration twice, first all of them to see whether it can.

    Here only category and step differ from job to job, and both were checked for the whole grid.
    """
    validate = Sweeper.validate_batch_is_legal
    Sweeper.validate_batch_is_legal = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Sweeper.validate_batch_is_legal = validate  # type: ignore[method-assign]


def _first_config(
    overrides: Sequence[str], axes: Mapping[str, Axis], conf: Path, config_name: str
) -> tuple[TrainConfig, str]:
    """The configuration of the first job, with every range checked, and the name of its launcher."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_sweep_override():
            raise LvdError(
                f"{override.key_or_group} has several values: only category and step are swept, "
                "give every other setting a run (name=) of its own"
            )
    first = [line for line in overrides if not line.startswith("hydra.")]  # which the launcher's plugin knows
    first += [f"{key}={axis.first}" for key, axis in axes.items()]
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        cfg = compose(config_name, first, return_hydra_config=True)
    launcher = cfg.hydra.runtime.choices["hydra/launcher"]
    with open_dict(cfg):
        del cfg["hydra"]
    return typed(cfg, TrainConfig), launcher


def _job_dir(*, _root_: DictConfig) -> str:
    """A job's output directory below the run's, for conf/train.yaml."""
    if _root_.task == "trunk":
        return "trunk"
    if _root_.category is None or _root_.step is None:
        raise LvdError("category and step say which job's directory: give both, or task=trunk")
    info = read_info(Path(_root_.captures) / _root_.capture)
    return str(Cell(info.category_names[info.category_index(_root_.category)], int(_root_.step)).path)


OmegaConf.register_new_resolver("job_dir", _job_dir, replace=True)
