"""What capture.py prints of a capture's samples and labels.

It waits for none of what only an evaluation needs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lvd.capture.labels import Labelling
from lvd.decide.written import rate_text
from lvd.detect.rows import left_out
from lvd.latents.disk import size_text
from lvd.latents.format import SAFE, SPLITS, UNLABELLED, Sample, label_text, read_info, read_samples
from lvd.latents.manifest import read_manifest
from lvd.latents.splits import count_near_duplicates
from lvd.latents.verify import Finding

_LISTED = 5  # disagreements on the terminal; all of them are in a file


def print_labelling(labels: Path, found: Labelling) -> None:
    """What a label file left open in a capture, and where annotators differ."""
    lines = []
    if found.unnamed_are == "safe":
        why = (
            "lists the unsafe ones of all samples by its columns"
            if found.by_index
            else "is read unnamed=safe"
        )
        lines.append(f"{labels} {why}: {found.unnamed} samples that it does not name are taken as safe")
    elif found.unnamed:
        become = "keep their labels" if found.unnamed_are == "keep" else "are unlabelled"
        lines.append(f"{labels} does not name {found.unnamed} of {found.samples} samples: they {become}")
    if found.forgotten:
        lines.append(f"{found.forgotten} of these had a label: unnamed=keep keeps it")
    if found.unnamed and found.unnamed_are == "unlabelled" and not found.says_safe:
        lines.append(f"{labels} says safe of no sample: if it lists the unsafe ones of all, add unnamed=safe")
    if found.undecided:
        lines.append(f"unlabelled, as their annotators do not agree enough: {found.undecided} samples")
    if found.disagreements:
        lines.append(f"judged differently: {len(found.disagreements)} samples, all in {found.listed}")
    for one in found.disagreements[:_LISTED]:
        said = ", ".join(f"{who or 'no name'}: {label_text(given)}" for who, given in one.judgements.items())
        lines.append(f"  {one.sample_id} {label_text(one.label)} ({said})")
    for line in lines:
        Console(soft_wrap=True).print(line, markup=False, highlight=False)


def print_labels(capture: Path, alpha: Mapping[str, float | None], advise: bool = True) -> None:
    """How many samples each category has in each split; with `alpha`, how far annotators agree on it.

    Where there are no labels, `advise` says how to give them.
    """
    info = read_info(capture)
    samples = read_samples(capture)
    console = Console(soft_wrap=True)  # wider than the table
    if any(sample.is_labelled for sample in samples):
        console.print(f"{capture}: {len(samples)} samples, steps {info.steps_text()}")
        Console().print(_counts(info.category_names, samples, alpha))
        if note := left_out(samples):
            console.print(note, markup=False, highlight=False)
    else:
        advice = (
            f"; label them with capture.py name={capture.name} page=true, or set them with labels=FILE.csv"
        )
        console.print(f"{capture}: {len(samples)} samples without labels{advice if advise else ''}")
    if near := count_near_duplicates(samples):
        note = f"{near} prompts are near-duplicates of another one: those that are alike are in one split"
        console.print(note, markup=False, highlight=False)


def _counts(names: Sequence[str], samples: Sequence[Sample], alpha: Mapping[str, float | None]) -> Table:
    table = Table()
    table.add_column("category")
    for split in SPLITS:
        table.add_column(split, justify="right")
    if alpha:
        table.add_column("Krippendorff's alpha", justify="right")
    groups = {name: [s.split for s in samples if s.has(name)] for name in names}
    groups[SAFE] = [s.split for s in samples if s.is_safe]
    if unlabelled := [s.split for s in samples if not s.is_labelled]:
        groups[UNLABELLED.value] = unlabelled
    for name, members in groups.items():
        agreement = [rate_text(alpha[name]) if name in alpha else ""] if alpha else []
        table.add_row(name, *(str(members.count(split)) for split in SPLITS), *agreement)
    return table


def print_verified(capture: Path, findings: Sequence[Finding]) -> None:
    """What `verify` found of a complete capture, a line each; nothing: how much was read."""
    for finding in findings:
        print(finding)
    if findings:
        return
    shards = read_manifest(capture).shards
    size = size_text(sum(shard.bytes for shard in shards))
    print(f"capture {capture} is as it was written: {len(shards)} shards, {size}, every byte read")
