"""Train a run's trunk, or its detectors: one job for each category and step, through Hydra multirun."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from lvd.config import TrainConfig, typed
from lvd.entry import run
from lvd.errors import LvdError
from lvd.launch import read_request


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def job(cfg: DictConfig) -> None:
    from lvd.launch import quiet_job, resolve_cell
    from lvd.sweep.job import run_cell, run_trunk

    config = typed(cfg, TrainConfig)
    with quiet_job(config.threads):
        if config.task == "trunk":
            run_trunk(config.job(), config.trunk_recipe(), force=config.force)
        else:
            run_cell(config.job(), resolve_cell(config), config.detector_recipe(), force=config.force)


def main() -> None:
    request = read_request(sys.argv[1:], Path(__file__).parent / "conf", "train")
    if request is None:  # --help and the like
        job()
        return
    sys.argv[1:] = request.arguments
    if request.config.plan:
        request.print_plan()
        return
    if request.has_work():
        with request.watch():
            job()
    failed = request.print_outcome()
    if failed:
        raise LvdError(f"{failed} jobs failed; the same command runs them again")


if __name__ == "__main__":
    run(main)
