"""One job of train.py, in whatever process a launcher gives it."""

import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lvd.config import TrainConfig
from lvd.errors import LvdError
from lvd.latents.format import read_info
from lvd.sweep.grid import Cell
from lvd.sweep.log import LOG

STOP = ".stop"  # in a run's directory, under fail_fast: a job has failed, those that are left return at once
_ISOLATING = ("ray", "submitit_local", "submitit_slurm")  # a death there would end the whole sweep's wait


def run_job(config: TrainConfig) -> None:
    """Run the job that a configuration stands for; what becomes of it stands in its result.json."""
    hydra = HydraConfig.get()
    os.chdir(hydra.runtime.cwd)  # ray starts its workers somewhere else
    launcher = hydra.runtime.choices["hydra/launcher"]
    stop = config.run_dir / STOP
    if config.fail_fast and stop.exists():
        return

    isolate = config.isolate if config.isolate is not None else launcher in _ISOLATING
    if launcher == "joblib" and config.threads is None:
        config = replace(config, threads=1)  # a process a core: more would get in each other's way
    done = _run_isolated(config, launcher) if isolate else _run(config)
    if config.fail_fast and not done:
        stop.touch()


def job_cell(config: TrainConfig) -> Cell | None:
    """The cell of one job's configuration; None: the trunk."""
    if config.task == "trunk":
        return None
    info = read_info(config.capture_dir)
    return Cell(info.category_names[info.category_index(str(config.category))], int(str(config.step)))


def _run(config: TrainConfig) -> bool:
    import torch

    from lvd.sweep.job import Job, run_cell, run_trunk

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    os.environ.setdefault("TQDM_DISABLE", "1")
    cell = job_cell(config)
    if cell is None:
        result = run_trunk(Job.of(config), config.trunk, force=config.force)
    else:
        result = run_cell(Job.of(config), cell, config.detector, force=config.force)
    return result.status == "done"


def _run_isolated(config: TrainConfig, launcher: str) -> bool:
    """In a process of the job's own: one that dies is a failed result, and the launcher's process lives.

    submitit's process has one thread and one job, and is forked. The others' run many jobs on many threads:
    a server without threads is forked for each, with the imports made once.
    """
    context: Any = multiprocessing.get_context("fork" if launcher.startswith("submitit") else "forkserver")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["__main__", "lvd.sweep.job"])
    process = context.Process(target=_run_alone, args=(config,))
    process.start()
    process.join()
    exit_code: int | None = process.exitcode
    if exit_code in (0, 1):
        return exit_code == 0

    from lvd.sweep.job import Job, identity_of, record_death

    how = f"status {exit_code}"
    if exit_code is not None and exit_code < 0:
        how = f"signal {-exit_code}, {signal.strsignal(-exit_code)}"
    record_death(
        Job.of(config), identity_of(config, job_cell(config)), f"the process of the job ended with {how}"
    )
    return False


def _run_alone(config: TrainConfig) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):  # submitit's own handlers are not ours
        signal.signal(number, signal.SIG_DFL)
    cell = job_cell(config)
    directory = config.run_dir / (cell.path if cell else "trunk")
    directory.mkdir(parents=True, exist_ok=True)
    log = os.open(directory / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.exit(0 if _run(config) else 1)


def _job_dir(*, _root_: DictConfig) -> str:
    """A job's output directory below the run's, for conf/train.yaml."""
    if _root_.task == "trunk":
        return "trunk"
    if _root_.category is None or _root_.step is None:
        raise LvdError("category and step say which job's directory: give both, or task=trunk")
    info = read_info(Path(_root_.captures) / _root_.capture)
    return str(Cell(info.category_names[info.category_index(_root_.category)], int(_root_.step)).path)


OmegaConf.register_new_resolver("job_dir", _job_dir, replace=True)
