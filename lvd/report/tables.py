"""What the commands print at their end."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from lvd.decide.metrics import Attribution, Summary
from lvd.errors import LvdError
from lvd.latents.disk import size_text
from lvd.latents.format import SPLITS, read_info, read_manifest, read_samples
from lvd.latents.verify import verify


def print_labels(capture: Path) -> None:
    """How many samples each category has in each split."""
    info = read_info(capture)
    samples = read_samples(capture)
    if not info.labelled:
        Console().print(
            f"{capture}: {len(samples)} samples without labels; "
            f"set them with capture.py name={capture.name} labels=FILE.csv"
        )
        return
    table = Table()
    table.add_column("category")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for name in (*info.category_names, "safe"):
        members = [
            s.split for s in samples if (name in s.categories or (name == "safe" and not s.categories))
        ]
        table.add_row(name, *(str(members.count(split)) for split in SPLITS))
    console = Console()
    console.print(f"{capture}: {len(samples)} samples, steps {info.steps_text()}")  # wider than the table
    console.print(table)


def print_verified(capture: Path) -> None:
    """Read a whole capture and say what is wrong with it.

    Raises:
        LvdError: the capture is not complete, or anything is wrong.
    """
    findings = verify(capture)
    for finding in findings:
        print(finding)
    if findings:
        files = len({finding.path for finding in findings})
        samples = len({sample_id for finding in findings for sample_id in finding.sample_ids})
        raise LvdError(
            f"capture {capture} is damaged: {files} bad files, {samples} samples in doubt, as listed; "
            "put the files back from a copy, or capture again under another name"
        )
    shards = read_manifest(capture).shards
    size = size_text(sum(shard.bytes for shard in shards))
    print(f"capture {capture} is as it was written: {len(shards)} shards, {size}, every byte read")


def print_summary(summary: Summary, attribution: Attribution) -> None:
    """The measured defence as a table, and a line about the categories that are named."""
    table = Table(
        title=f"eta={summary.eta} lam={summary.lam}, {summary.n_test} test samples", title_justify="left"
    )
    for column in ("measure", "value", "95% interval"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    table.add_row("accuracy", _number(summary.accuracy), _interval(summary.accuracy_ci))
    table.add_row("unsafe samples caught (tpr)", _number(summary.tpr), _interval(summary.tpr_ci))
    table.add_row("safe samples blocked (fpr)", _number(summary.fpr), _interval(summary.fpr_ci))
    if summary.n_unchecked:
        table.add_row("undecided unsafe samples, withheld, not caught", str(summary.n_unchecked_unsafe), "")
        table.add_row("undecided safe samples, counted as blocked", str(summary.n_unchecked_safe), "")
    table.add_row("AUROC of flagged steps", _number(summary.auroc), "")
    mean_steps = summary.steps_mean_unsafe
    table.add_row("steps run until caught, mean", "-" if mean_steps is None else f"{mean_steps:.1f}", "")
    table.add_row("compute saved, this mix of samples", f"{summary.compute_saved:.0%}", "")
    for name, values in summary.per_category.items():
        table.add_row(
            f"  {name} caught, n={values['n']}", _number(values["tpr"]), _interval(values["tpr_ci"])
        )
    Console().print(table)
    if attribution.n:
        print(
            f"first category named right: {_number(attribution.first_right)} of {attribution.n} caught "
            f"({_interval(attribution.first_right_ci)}), {attribution.named_mean:.1f} named on average"
        )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
