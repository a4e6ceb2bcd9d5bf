"""Which samples of a capture count for a run, and what it has learned from."""

from collections.abc import Sequence
from dataclasses import dataclass

from lvd.detect.rows import labelled_rows
from lvd.errors import LvdError
from lvd.latents.format import SPLITS, Sample
from lvd.latents.reader import CaptureReader
from lvd.sweep.trained_on import TrainedOn, seen


@dataclass(frozen=True)
class Provenance:
    """The capture that the rates are of, and how it stands to the one that the detectors learned from."""

    capture: str
    trained_on: str  # that capture's name, or several joined by commas
    n_left_out: int  # labelled test samples: the detectors were trained or selected on their prompts
    n_unlabelled: dict[str, int]  # samples of each split, which nothing is learned from or measured on
    other_origin: list[str]  # the fields of capture.json in which the two differ

    def notes(self) -> list[str]:
        """What a reader of the rates must know; nothing to know: []."""
        told = []
        if any(self.n_unlabelled.values()):
            counts = ", ".join(f"{count} of {split}" for split, count in self.n_unlabelled.items())
            told.append(f"unlabelled samples of {self.capture} are in no rate and no calibration: {counts}")
        if self.n_left_out:
            told.append(
                f"{self.n_left_out} test samples of {self.capture} are left out: the detectors were trained "
                f"or selected on their prompts, in {self.trained_on}"
            )
        if self.other_origin:
            told.append(
                f"{self.capture} was made otherwise than {self.trained_on}, which the detectors were trained "
                f"on ({', '.join(self.other_origin)}): the rates are not those of a guard, there is no bundle"
            )
        return told


def rows_that_count(
    capture: CaptureReader, trained_on: Sequence[TrainedOn]
) -> tuple[dict[str, list[int]], Provenance]:
    """The rows that count: val samples that nothing was trained on, test samples not selected on either.

    Raises:
        LvdError: the detectors are of latents of another shape, or no test sample is left.
    """
    trained = frozenset[str]().union(*(learned.trained for learned in trained_on))
    selected = frozenset[str]().union(*(learned.selected for learned in trained_on))
    origin = sorted({field for learned in trained_on for field in learned.other_origin(capture.info)})
    learned_from = ", ".join(sorted({learned.capture for learned in trained_on}))
    name = capture.directory.name
    if "latent_shape" in origin:
        raise LvdError(
            f"the detectors were trained on latents of another shape, those of {learned_from}: "
            f"capture {name} cannot be scored"
        )
    samples = capture.samples
    test = labelled_rows(samples, "test")
    rows = {
        "val": _without(samples, labelled_rows(samples, "val"), trained),
        "test": _without(samples, test, trained | selected),
    }
    if not rows["test"]:
        raise LvdError(
            f"no test sample of {capture.directory} is left to measure on: the detectors were trained or "
            f"selected on all their prompts, in {learned_from}"
            if test
            else f"{capture.directory} has no labelled test sample: capture or label more"
        )
    unlabelled = {split: sum(s.split == split and not s.is_labelled for s in samples) for split in SPLITS}
    return rows, Provenance(name, learned_from, len(test) - len(rows["test"]), unlabelled, origin)


def _without(samples: Sequence[Sample], rows: Sequence[int], keys: frozenset[str]) -> list[int]:
    """The rows whose prompts the keys are not of."""
    known = seen([samples[row] for row in rows], keys)
    return [row for row, is_known in zip(rows, known, strict=True) if not is_known]
