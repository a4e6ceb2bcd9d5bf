"""Which samples people look at first, and why: what a label would teach most comes first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lvd.capture.agreement import Judgement
from lvd.capture.frames import inference_device
from lvd.capture.labels import read_disagreements
from lvd.capture.preview import write_missing_previews
from lvd.labelling.suggest import Suggestions, of_file, of_run
from lvd.latents.format import CaptureInfo, Sample, label_text
from lvd.latents.reader import CaptureReader


@dataclass(frozen=True)
class Entry:
    """A sample in its place."""

    sample: Sample
    why: str  # it stands here, in a sentence
    needs_label: bool  # it has none, or something speaks against the one it has


@dataclass(frozen=True)
class Queue:
    """All samples of a capture, those first whose labels help most."""

    capture: Path
    info: CaptureInfo
    entries: Sequence[Entry]
    suggestions: Sequence[Suggestions]

    def scores(self, sample: Sample) -> dict[str, Mapping[str, float]]:
        """What each source says of a sample."""
        found = {one.source: one.scores.get(sample.sample_id, {}) for one in self.suggestions}
        return {source: by for source, by in found.items() if by}

    @property
    def needing(self) -> int:
        return sum(entry.needs_label for entry in self.entries)


def prepare(directory: Path, *, run: Path | None, suggestions: Path | None) -> Queue:
    """Order a capture's samples by its labels and by what a run or a file suggests; all get their previews.

    Raises:
        LvdError: the capture is not complete, a preview is missing and cannot be made, or what is suggested
            is refused by `lvd.labelling.suggest`.
    """
    capture = CaptureReader(directory)
    device = inference_device("auto")
    made = write_missing_previews(capture, device)
    if made:
        print(f"{made} previews are decoded from x0 of step {capture.info.stored_steps - 1}")
    sources = [of_run(capture, run, device)] if run is not None else []
    sources += [of_file(capture, suggestions)] if suggestions is not None else []
    entries = ordered(capture.samples, read_disagreements(directory), sources)
    return Queue(directory, capture.info, entries, sources)


def ordered(
    samples: Sequence[Sample],
    disagreements: Mapping[str, Mapping[str, Judgement]],
    suggestions: Sequence[Suggestions],
) -> list[Entry]:
    """First what annotators could not agree on, then labels that a decision contradicts, then labels that
    were outvoted, then unlabelled samples, the least certain first, and at last the other labelled ones.

    A sample is as uncertain as its score that is nearest to 0.5, by the first of `suggestions` that has any.
    What is alike keeps the order of the capture.
    """
    placed: list[tuple[int, float, Entry]] = []
    for sample in samples:
        by = disagreements.get(sample.sample_id, {})
        contradicted = _contradiction(sample, suggestions)
        source, category, score = _least_sure(sample, suggestions)
        doubt = 0.0 if score is None else 1 - abs(2 * score - 1)
        if by and not sample.is_labelled:
            entry = Entry(sample, f"{_contested(by)} It is unlabelled.", True)
            placed.append((0, -doubt, entry))
        elif contradicted:
            placed.append((1, -doubt, Entry(sample, contradicted, True)))
        elif by:
            entry = Entry(sample, f"{_contested(by)} Most say {label_text(sample.categories)}.", True)
            placed.append((2, -doubt, entry))
        elif not sample.is_labelled:
            why = "Unlabelled, in the order of the capture."
            if score is not None:
                why = f"Unlabelled. What {source} is least sure of: {category} {score:.2f}."
            placed.append((3, -doubt, Entry(sample, why, True)))
        else:
            why = f"Labelled {label_text(sample.categories)}, and nothing speaks against it."
            placed.append((4, -doubt, Entry(sample, why, False)))
    placed.sort(key=lambda place: place[:2])
    return [entry for _, _, entry in placed]


def _contradiction(sample: Sample, suggestions: Sequence[Suggestions]) -> str | None:
    """A sentence about a decision that is wrong by the sample's label."""
    for one in suggestions:
        decision = one.decisions.get(sample.sample_id)
        if decision is None or not sample.is_labelled or decision.unsafe == sample.is_unsafe:
            continue
        said = f"Labelled {label_text(sample.categories)}, but {one.source}"
        if decision.unsafe:
            named = f", for {' and '.join(decision.categories)}" if decision.categories else ""
            return f"{said} stops it at step {decision.step}{named}."
        return f"{said} takes it for safe."
    return None


def _least_sure(
    sample: Sample, suggestions: Sequence[Suggestions]
) -> tuple[str, str, float] | tuple[None, None, None]:
    for one in suggestions:
        scores = one.scores.get(sample.sample_id, {})
        if scores:
            category, score = min(scores.items(), key=lambda item: abs(item[1] - 0.5))
            return one.source, category, score
    return None, None, None


def _contested(by: Mapping[str, Judgement]) -> str:
    """What annotators do not agree on; who said what is not told to who labels next."""
    everything = frozenset[str]().union(*by.values())
    names = sorted(name for name in everything if len({name in judgement for judgement in by.values()}) > 1)
    return f"{len(by)} annotators do not agree on {' and '.join(names)}."
