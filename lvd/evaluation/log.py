"""An evaluation's numbers in wandb, TensorBoard or CSV."""

from pathlib import Path
from typing import Any

import numpy as np

from lvd.evaluation.write import Evaluation
from lvd.tracking import LoggerConfig, tracker


def log_evaluation(evaluation: Evaluation, run: Path, chosen: LoggerConfig, config: dict[str, Any]) -> None:
    """Log the rules' numbers and the detectors'; to wandb as one aggregate run with a table and a heatmap."""
    with tracker(
        chosen,
        run / "evaluation",
        group=run.name,
        name=f"{run.name}/evaluation",
        job_type="evaluation",
        tags=["evaluation"],
        config=config,
    ) as tracked:
        if tracked.wandb is not None:
            import wandb

            tracked.wandb.log(
                {
                    "detectors": wandb.Table(dataframe=evaluation.cells),
                    "auroc_by_category_and_step": wandb.Plotly(evaluation.heatmap),
                }
            )
            tracked.wandb.summary.update(
                {
                    **evaluation.decision.as_json(),
                    "rules": {each.rule.kind: each.as_json() for each in evaluation.rules},
                }
            )
        elif tracked.logger is not None:
            tracked.logger.log_metrics(_rule_numbers(evaluation), step=0)
            for step, metrics in _detector_numbers(evaluation).items():
                tracked.logger.log_metrics(metrics, step=step)


def _rule_numbers(evaluation: Evaluation) -> dict[str, float]:
    """The numbers of each rule's summary; what could not be measured is left out."""
    return {
        f"{each.rule.kind}/{name}": value
        for each in evaluation.rules
        for name, value in each.as_json().items()
        if isinstance(value, int | float)
    }


def _detector_numbers(evaluation: Evaluation) -> dict[int, dict[str, float]]:
    """By step, each category's AUROC and accuracy; of detectors that could not be measured, none."""
    found: dict[int, dict[str, float]] = {}
    for row in evaluation.cells.to_dict("records"):
        numbers = {f"{name}/{row['category']}": float(row[name]) for name in ("auroc", "accuracy")}
        known = {name: value for name, value in numbers.items() if np.isfinite(value)}
        found.setdefault(int(row["step"]), {}).update(known)
    return {step: numbers for step, numbers in found.items() if numbers}
