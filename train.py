"""Train a run's trunk, or its detectors: one job for each category and step."""

import sys

import hydra
from omegaconf import DictConfig

from lvd.axes import expanded
from lvd.config import TrainConfig
from lvd.entry import leave_ctrl_c_to_joblib, run
from lvd.sweep.process import run_job
from lvd.sweep.request import check_typed_launcher
from lvd.typed import typed


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def job(cfg: DictConfig) -> None:
    """One job; conf/train.yaml names the sweeper that decides which there are."""
    leave_ctrl_c_to_joblib()
    run_job(typed(cfg, TrainConfig))


def main() -> None:
    check_typed_launcher(sys.argv[1:])
    sys.argv[1:] = expanded(sys.argv[1:], ("category", "step"), "jobs")
    job()


if __name__ == "__main__":
    run(main)
