"""Score a capture with a run's whole grid, apply the decision rules, and write the report and a bundle."""

import sys
from dataclasses import asdict
from pathlib import Path

import hydra
from omegaconf import DictConfig

from lvd.config import EvaluateConfig, typed
from lvd.entry import run, sentences, settings_by_category
from lvd.latents.disk import errors_as_sentences


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def evaluation(cfg: DictConfig) -> None:
    from lvd.capture.frames import decoding_device
    from lvd.comparison import ABOUT
    from lvd.evaluation import Evaluation, evaluate_runs, log_to_wandb
    from lvd.report.tables import print_comparison, print_summary
    from lvd.report.wandb import WandbTarget

    def show(found: Evaluation, run_dir: Path) -> None:
        print_summary([(each.rule, each.summary, each.attribution) for each in found.rules], config.decision)
        for each in found.rules:
            if each.lost_by_release is not None:
                print(
                    f"{each.rule.kind}: {each.lost_by_release} of {each.summary.n_unsafe} unsafe samples "
                    "were let go that it would have caught at a later step"
                )
        if found.not_calibrated is not None:
            print(f"sequential is not there: {found.not_calibrated}")
        if config.max_fpr is not None:
            print(f"threshold {found.threshold:.4f}, chosen on val for max_fpr={config.max_fpr}")
        if found.problems:
            print(f"{len(found.problems)} detectors are missing, e.g. {found.problems[0]}")
        for sentence in found.provenance.sentences():
            print(sentence)
        print(f"report: {found.report}")
        bundle = run_dir / "bundle"
        if found.bundle is not None:
            print(f"bundle: {bundle}, digest {found.bundle}")
        else:
            if not found.provenance.other_origin:
                print(f"no bundle: {found.no_bundle}")
            if bundle.exists():
                print(f"{bundle} is still the one of an earlier evaluation")

    written = Path(cfg.runs) if cfg.compare else Path(cfg.runs) / cfg.name
    with sentences(), errors_as_sentences(written):
        config = typed(cfg, EvaluateConfig)
        capture_dir, run_dirs = config.capture_dir(), config.run_dirs
        evaluations, compared = evaluate_runs(
            capture_dir, run_dirs, config.recipe(), decoding_device(config.accelerator)
        )
        for found, run_dir in zip(evaluations, run_dirs, strict=True):
            target = WandbTarget(config.logger.project, config.logger.entity)
            settings = {**asdict(config), "name": run_dir.name, "capture": capture_dir.name}
            log_to_wandb(found, run_dir, target, settings)
            if compared is not None:
                print(f"{run_dir}:")
            show(found, run_dir)
        if compared is not None:
            print_comparison(compared.table(), ABOUT)


def main() -> None:
    sys.argv[1:] = settings_by_category(sys.argv[1:], ("policy", "shares"))
    evaluation()


if __name__ == "__main__":
    run(main)
