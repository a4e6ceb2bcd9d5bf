"""From a command line to jobs: what train.py was asked to run, checked before Hydra starts anything."""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from lvd.config import TrainConfig, typed
from lvd.errors import LvdError
from lvd.latents.format import read_info
from lvd.sweep.grid import AXES, Cell, axis_values, expand_axes, resolve_cells
from lvd.sweep.progress import print_failures, print_plan, watch
from lvd.sweep.results import read_result, read_results

_MULTIRUN = ("-m", "--multirun")


@dataclass(frozen=True)
class Request:
    """A checked command line: the arguments for Hydra, the configuration and the cells they ask for."""

    arguments: list[str]
    config: TrainConfig
    cells: list[Cell]  # none for task=trunk
    multirun: bool

    def print_plan(self) -> None:
        """The grid and the state of its jobs."""
        from lvd.sweep.job import cell_digest

        job, recipe = self.config.job(), self.config.detector_recipe()
        digests = {cell: cell_digest(job, cell, recipe) for cell in self.cells}
        print_plan(self.config.run_dir, read_results(self.config.run_dir, self.cells), digests)

    def has_work(self) -> bool:
        """False when every cell is done and would be skipped: Hydra need not start."""
        from lvd.sweep.job import is_done

        job, recipe = self.config.job(), self.config.detector_recipe()
        return (
            self.config.force or not self.cells or not all(is_done(job, cell, recipe) for cell in self.cells)
        )

    def watch(self) -> AbstractContextManager[None]:
        """Say what the detectors start from, and show the sweep's progress."""
        if not self.cells:
            return nullcontext()
        from lvd.detect.training import starting_trunk

        trunk = starting_trunk(self.config.run_dir, self.config.detector.init)  # type: ignore[arg-type]
        kind = "heads on the trunk" if self.config.detector.tuning == "head" else "tuned copies of the trunk"
        print(f"{len(self.cells)} detectors, {kind if trunk else 'trained from scratch (no trunk)'}")
        return watch(self.config.run_dir, self.cells) if self.multirun else nullcontext()

    def print_outcome(self) -> int:
        """What became of the jobs; returns how many failed."""
        run = self.config.run_dir
        if self.multirun:
            results = read_results(run, self.cells)
            done = [result for result in results.values() if result is not None and result.status == "done"]
            if done:
                mean = sum(result.metrics["auroc"] for result in done) / len(done)
                print(f"{len(done)} of {len(results)} detectors done, mean val AUROC {mean:.3f}, in {run}")
            return print_failures(run, results)

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
    expanded = expand_axes(arguments)
    overrides = [argument for argument in expanded if argument not in _MULTIRUN]
    config = _first_config(overrides, conf, config_name)
    if config.task == "trunk":
        if multirun:
            raise LvdError("task=trunk is one job: leave out -m")
        _check_capture(config)
        return Request(expanded, config, [], multirun)

    asked = {key: axis_values(overrides, key) for key in AXES}
    for key, values in asked.items():
        if not values:
            raise LvdError(
                f"{key} is missing: give category=0..4 step=0..49 with -m, one of each, or task=trunk"
            )
        if len(values) > 1 and not multirun:
            raise LvdError(f"{key}={','.join(values)} names {len(values)} jobs: add -m")
    cells = resolve_cells(config.capture_dir, asked["category"], asked["step"])
    return Request(expanded, config, cells, multirun)


def resolve_cell(config: TrainConfig) -> Cell:
    """The cell of one job's configuration."""
    return resolve_cells(config.capture_dir, [str(config.category)], [str(config.step)])[0]


@contextmanager
def quiet_job(threads: int | None) -> Iterator[None]:
    """A job is one of hundreds: Lightning's notes and hints are not for the terminal."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield


def _first_config(overrides: Sequence[str], conf: Path, config_name: str) -> TrainConfig:
    """The configuration of the first job, with every range checked."""
    first = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if not override.is_sweep_override():
            first.append(str(override.input_line))
        elif override.key_or_group in AXES:
            first.append(f"{override.key_or_group}={next(iter(override.sweep_string_iterator()))}")
        else:
            raise LvdError(
                f"{override.key_or_group} has several values: only category and step are swept, "
                "give every other setting a run (name=) of its own"
            )
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        cfg = compose(config_name, [line for line in first if not line.startswith("hydra")])
    return typed(cfg, TrainConfig)


def _check_capture(config: TrainConfig) -> None:
    names = read_info(config.capture_dir).category_names
    resolve_cells(config.capture_dir, names, ["0"])


def _job_dir(*, _root_: DictConfig) -> str:
    """A job's output directory below the run's, for conf/train.yaml."""
    if _root_.task == "trunk":
        return "trunk"
    info = read_info(Path(_root_.captures) / _root_.capture)
    return str(Cell(info.category_names[info.category_index(_root_.category)], int(_root_.step)).path)


OmegaConf.register_new_resolver("job_dir", _job_dir, replace=True)
