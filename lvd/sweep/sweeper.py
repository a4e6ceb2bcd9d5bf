"""The jobs of a command that are left, and no others, through a launcher of Hydra.

`hydra_plugins/lvd_sweeper.py` is Hydra's way here.
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lvd.axes import MULTIRUN, read_axes
from lvd.config import TrainConfig
from lvd.errors import LvdError
from lvd.latents import disk
from lvd.sweep.grid import AXES, Cell
from lvd.sweep.process import STOP
from lvd.sweep.progress import watch
from lvd.sweep.request import Request, read_request
from lvd.sweep.tables import print_outcome, print_plan, print_start
from lvd.typed import typed


def sweep(context: HydraContext, task: TaskFunction, config: DictConfig, arguments: Sequence[str]) -> None:
    """Do what a command of train.py asks for: check it, then run its jobs, or print its plan.

    `config` is composed without the axes that have several values; `arguments` are all settings as typed.

    Raises:
        LvdError: something is wrong with the command, or jobs of it failed.
    """
    # Hydra does not tell: conf/train.yaml makes every command a multirun to it.
    multirun = any(flag in sys.argv for flag in MULTIRUN)
    axes, settings = read_axes(arguments, AXES)
    _refuse_several_values(settings)
    here = [] if multirun else ["hydra/launcher=basic"]  # in this process, whatever an experiment names
    first = context.config_loader.load_sweep_config(
        config, [*settings, *here, *(f"{key}={axis.first}" for key, axis in axes.items())]
    )
    name = first.hydra.runtime.choices["hydra/launcher"]
    request = read_request(_train_config(first), name, axes, multirun=multirun)
    if request.config.verify:
        from lvd.sweep.verify import print_verified_run

        print_verified_run(request.config.run_dir)
        return
    if request.config.plan:
        print_plan(request)
        return

    left = request.left()
    given_up = None
    if left or not request.cells:
        print_start(request, left)
        main = config if multirun else first
        if multirun:
            _save(config, request.config.run_dir)
        launcher = Plugins.instance().instantiate_launcher(context, task, main)
        jobs = [[*settings, f"category={cell.category}", f"step={cell.step}"] for cell in left] or [settings]
        in_turn = request.config.fail_fast and name == "basic"
        given_up = _launch(launcher, [[job] for job in jobs] if in_turn else [jobs], request, left)
    failed = print_outcome(request)
    if given_up:
        raise LvdError(f"the launcher gave up ({given_up}); the same command goes on with what is left")
    if failed:
        raise LvdError(f"{failed} jobs failed; the same command runs them again")


def _launch(
    launcher: Launcher, batches: Sequence[Sequence[Sequence[str]]], request: Request, left: Sequence[Cell]
) -> str | None:
    """Run batches of jobs one after the other, with the progress of a multirun on show.

    Under fail_fast, no batch follows one in which a job has failed. Returns why a launcher gave up before
    its time, when it did: a process that dies with a job may end its waiting. What became of the jobs is
    read from their results then, like everything else.
    """
    run = request.config.run_dir
    stop = run / STOP
    stop.unlink(missing_ok=True)
    shown = request.multirun and request.cells
    try:
        with watch(run, left, request.grid) if shown else nullcontext(), disk.translate_errors(run):
            started = 0
            for batch in batches:
                for job in launcher.launch(batch, initial_job_idx=started):
                    _ = job.return_value  # raises what the job has raised
                started += len(batch)
                if stop.exists():
                    break
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:
        if not request.multirun:
            raise
        first, *_ = str(error).splitlines() or [""]
        return str(error) if isinstance(error, LvdError) else f"{type(error).__name__}: {first}"
    finally:
        stop.unlink(missing_ok=True)
    return None


def _refuse_several_values(settings: Sequence[str]) -> None:
    for override in OverridesParser.create().parse_overrides(list(settings)):
        if override.is_sweep_override():
            raise LvdError(
                f"{override.key_or_group} has several values: only category and step are swept, "
                "give every other setting a run (name=) of its own"
            )


def _train_config(composed: DictConfig) -> TrainConfig:
    cfg = deepcopy(composed)
    with open_dict(cfg):
        del cfg["hydra"]
    return typed(cfg, TrainConfig)


def _save(config: DictConfig, run: Path) -> None:
    """The configuration of the whole sweep, as Hydra's own sweeper leaves it."""
    with disk.translate_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, run / "multirun.yaml")
