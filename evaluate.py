"""Score a capture with a run's whole grid, apply the decision rules, and write the report and a bundle."""

import sys
from dataclasses import asdict
from pathlib import Path

import hydra
from omegaconf import DictConfig

from lvd.config import EvaluateConfig
from lvd.entry import exit_on_user_error, run, settings_by_category
from lvd.latents.disk import translate_errors
from lvd.typed import typed


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def evaluation(cfg: DictConfig) -> None:
    from lvd.capture.frames import inference_device
    from lvd.evaluation.comparison import ABOUT
    from lvd.evaluation.log import log_evaluation
    from lvd.evaluation.printed import print_evaluation
    from lvd.evaluation.run import capture_to_measure, evaluate_runs
    from lvd.report.tables import print_comparison

    written = Path(cfg.runs) if cfg.compare else Path(cfg.runs) / cfg.name
    with exit_on_user_error(), translate_errors(written):
        config = typed(cfg, EvaluateConfig)
        capture_dir, run_dirs = capture_to_measure(config), config.run_dirs
        evaluations, compared = evaluate_runs(
            capture_dir, run_dirs, config, inference_device(config.accelerator)
        )
        for found, run_dir in zip(evaluations, run_dirs, strict=True):
            settings = {**asdict(config), "name": run_dir.name, "capture": capture_dir.name}
            log_evaluation(found, run_dir, config.logger, settings)
            if compared is not None:
                print(f"{run_dir}:")
            print_evaluation(found, run_dir, config)
        if compared is not None:
            print_comparison(compared.table(), ABOUT)


def main() -> None:
    sys.argv[1:] = settings_by_category(sys.argv[1:], ("policy", "shares"))
    evaluation()


if __name__ == "__main__":
    run(main)
