"""Score val and test with a run's whole grid, apply the decision rule, and write the report."""

from dataclasses import asdict
from pathlib import Path

import hydra
from omegaconf import DictConfig

from lvd.config import EvaluateConfig, typed
from lvd.entry import run, sentences
from lvd.latents.disk import errors_as_sentences


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    from lvd.evaluation import evaluate, log_to_wandb
    from lvd.report.tables import print_summary
    from lvd.report.wandb import WandbTarget

    with sentences(), errors_as_sentences(Path(cfg.runs) / cfg.name):
        config = typed(cfg, EvaluateConfig)
        run_dir = Path(config.runs) / config.name
        evaluation = evaluate(
            Path(config.captures) / config.capture,
            run_dir,
            eta=config.eta,
            lam=config.lam,
            threshold=config.threshold,
            max_fpr=config.max_fpr,
            examples=config.examples,
            show_unsafe=config.show_unsafe,
        )
        log_to_wandb(
            evaluation, run_dir, WandbTarget(config.logger.project, config.logger.entity), asdict(config)
        )
        print_summary(evaluation.summary, evaluation.attribution)
        if config.max_fpr is not None:
            print(f"threshold {evaluation.threshold:.4f}, chosen on val for max_fpr={config.max_fpr}")
        if evaluation.problems:
            print(f"{len(evaluation.problems)} detectors are missing, e.g. {evaluation.problems[0]}")
        for sentence in evaluation.provenance.sentences():
            print(sentence)
        print(f"report: {evaluation.report}")
        bundle = run_dir / "bundle"
        if evaluation.bundle is not None:
            print(f"bundle: {bundle}, digest {evaluation.bundle}")
        else:
            if not evaluation.provenance.other_origin:
                print(f"no bundle: a guard needs every detector of the first {config.eta} steps")
            if bundle.exists():
                print(f"{bundle} is still the one of an earlier evaluation")


if __name__ == "__main__":
    run(main)
