"""Train a run's trunk, or its detectors: one job for each category and step, through Hydra multirun."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from lvd.config import TrainConfig, typed
from lvd.entry import leave_ctrl_c_to_joblib, run
from lvd.errors import LvdError
from lvd.sweep.process import run_job
from lvd.sweep.request import read_request, typed_choices_win


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def job(cfg: DictConfig) -> None:
    leave_ctrl_c_to_joblib()
    run_job(typed(cfg, TrainConfig))


def main() -> None:
    conf = Path(__file__).parent / "conf"
    sys.argv[1:] = typed_choices_win(sys.argv[1:], conf, "train")
    request = read_request(sys.argv[1:], conf, "train")
    if request is None:  # --help and the like
        job()
        return
    if request.config.verify:
        from lvd.sweep.verify import print_verified_run

        print_verified_run(request.config.run_dir)
        return
    if request.config.plan:
        request.print_plan()
        return
    given_up = request.run(job)
    failed = request.print_outcome()
    if given_up:
        raise LvdError(f"the launcher gave up ({given_up}); the same command goes on with what is left")
    if failed:
        raise LvdError(f"{failed} jobs failed; the same command runs them again")


if __name__ == "__main__":
    run(main)
