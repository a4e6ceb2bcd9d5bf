"""What evaluate.py prints of a run."""

from pathlib import Path

from lvd.decide.recipe import EvaluationRecipe
from lvd.evaluation.write import Evaluation
from lvd.report.tables import print_summary


def print_evaluation(found: Evaluation, run: Path, recipe: EvaluationRecipe) -> None:
    """What `evaluate.py` prints of a run: the rules' numbers, what limits them, and where the files are."""
    print_summary([(each.rule, each.summary, each.attribution) for each in found.rules], recipe.decision)
    for each in found.rules:
        if each.lost_by_release is not None:
            print(
                f"{each.rule.kind}: {each.lost_by_release} of {each.summary.n_unsafe} unsafe samples "
                "were let go that it would have caught at a later step"
            )
    if found.not_calibrated is not None:
        print(f"sequential is not there: {found.not_calibrated}")
    if recipe.max_fpr is not None:
        print(f"threshold {found.threshold:.4f}, chosen on val for max_fpr={recipe.max_fpr}")
    if found.problems:
        print(f"{len(found.problems)} detectors are missing, e.g. {found.problems[0]}")
    for note in found.provenance.notes():
        print(note)
    print(f"report: {found.report}")
    bundle = run / "bundle"
    if found.bundle is not None:
        print(f"bundle: {bundle}, digest {found.bundle}")
        for sentence in found.refused:
            print(sentence)
        return
    if not found.provenance.other_origin:
        print(f"no bundle: {found.no_bundle}")
    if bundle.exists():
        print(f"{bundle} is still the one of an earlier evaluation")
