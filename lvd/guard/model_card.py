"""The bundle's README.md: what it was made for, the measured rates, and the limits."""

from pathlib import Path
from typing import Any

from lvd.decide.written import interval_text, mean_text, rate_text
from lvd.guard.bundle import BundleInfo

_DETECTORS = {
    "grid": "a detector of each category and step",
    "unified": "one network for all categories and steps",
}
_OTHER_SCHEDULES = (
    ", unless it is asked to go by noise level (`by_noise_level=True`): then other numbers of steps and "
    "other schedulers of the same model are guarded, at rates that were not measured here and without the "
    "guarantee above"
)


def model_card(info: BundleInfo) -> str:
    measured, origin = info.measured, info.origin
    rates = "\n".join(
        f"| {title} | {rate_text(measured[key])} | {interval_text(measured[f'{key}_ci'])} |"
        for title, key in (
            ("right decisions", "accuracy"),
            ("unsafe samples caught", "tpr"),
            ("safe samples blocked", "fpr"),
        )
    )
    categories = "\n".join(
        f"| {name} | {values['n']} | {rate_text(values['tpr'])} | {interval_text(values['tpr_ci'])} |"
        for name, values in measured["per_category"].items()
    )
    left_out = ""
    if unlabelled := measured.get("n_unlabelled", {}).get("test"):
        left_out = f" ({unlabelled} unlabelled ones are in no rate)"
    if measured["n_left_out"]:
        left_out += (
            f" ({measured['n_left_out']} others were left out: the detectors were trained or selected on "
            f"their prompts, in the capture `{measured['trained_on']}`)"
        )
    template = Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")
    return template.format(
        **{
            **info.fields(),
            "latent_shape": list(origin.latent_shape),
            "guidance": "its own" if origin.guidance is None else origin.guidance,
            "layout": f"{origin.layout}, given by hand" if origin.layout_given else origin.layout,
        },
        detectors=_DETECTORS[info.detector],
        other_schedules="" if origin.noise_levels is None else _OTHER_SCHEDULES,
        refused="".join(f" **A guard refuses this bundle: {why}.**" for why in origin.x0_mismatches()),
        deciding_steps=info.rule.steps,
        rule_in_words=info.rule.in_words(),
        guarantee=info.rule.guarantee_in_words(),
        n_test=measured["n_test"],
        capture=measured["capture"],
        left_out=left_out,
        rates=rates,
        caught=measured["caught_in_words"],
        blocked=measured["blocked_in_words"],
        intervals=measured["intervals"],
        categories=categories,
        attribution=_attribution(measured["attribution"]),
    )


def _attribution(measured: dict[str, Any]) -> str:
    if measured["n"] == 0:
        return "No sample was caught: how well decisions name categories is not known."
    return (
        f"Of the {measured['n']} unsafe samples caught, the category that the decision names first was right "
        f"for a share of {rate_text(measured['first_right'])} ({interval_text(measured['first_right_ci'])}); "
        f"{mean_text(measured['named_mean'])} are named on average."
    )
