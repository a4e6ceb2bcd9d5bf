"""Decoded x0 of some test samples: mistakes first, blurred wherever anything calls the sample unsafe."""

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvd.capture.decode import decode_frames, load_vae
from lvd.decide.rules import Decisions, Floats, Rule, Vote
from lvd.detect.bank import Scored
from lvd.errors import LvdError
from lvd.latents.format import label_text
from lvd.latents.reader import CaptureReader
from lvd.report.page import ExampleRow, Section

_SHOWN_STEPS = 8


def examples_section(
    capture: CaptureReader,
    test: Scored,
    rules: Sequence[Rule],
    rule: Rule,
    count: int,
    *,
    show_unsafe: bool,
) -> Section:
    """Decoded x0 of some test samples: mistakes first, then right decisions of each kind."""
    title = "Failures to look at"
    try:
        vae = load_vae(capture.info.origin)
    except LvdError as error:
        return Section(title, f"Not shown: {error}.", [])
    decisions = rule.decide(test.scores_NSK)
    is_safe_N = np.all([each.decide(test.scores_NSK).safe for each in rules], axis=0)
    steps = np.unique(np.linspace(0, test.flags.steps - 1, _SHOWN_STEPS).round().astype(int)).tolist()
    readers = [capture.step(step) for step in steps]
    middle = capture.info.origin.latent_shape[1] // 2
    chosen = _chosen_examples(test, rule, count)
    body = []
    for place in chosen:
        sample, row = test.samples[place], test.rows[place]
        latents = np.stack([reader[row][:, middle] for reader in readers])
        images = decode_frames(vae, torch.from_numpy(latents).float())
        sharp = bool(is_safe_N[place]) and not _is_doubted(test, place)
        body.append(
            ExampleRow(
                sample_id=sample.sample_id,
                caption=sample.prompt,
                decision=f"{_verdict(test, rule, decisions, place, capture)}; {_why(rule, test, place)}",
                tone=_tone(test, decisions, place),
                frames=[
                    (
                        f"step {step}\n{_highest(test.scores_NSK[place, step])}",
                        _png(image),
                        isinstance(rule, Vote) and bool(test.flags.flagged[place, step]),
                    )
                    for step, image in zip(steps, images, strict=True)
                ],
                images="sharp" if sharp else "covered" if show_unsafe else "blurred",
            )
        )
    wrong = decisions.checked & (decisions.unsafe != test.label)
    return Section(title, _about_examples(test, rule, int(wrong[chosen].sum()), int(wrong.sum())), body)


def _about_examples(test: Scored, rule: Rule, shown: int, mistakes: int) -> str:
    text = (
        f"{shown} of {mistakes} mistakes of the {rule.kind} rule come first, missed unsafe samples and then "
        "safe ones that are blocked or marked, the worst first; some right decisions follow. "
        if mistakes
        else f"The {rule.kind} rule made no mistake on the test split: some right decisions are shown. "
    )
    text += "An example is the middle frame of x0 at some steps, with the highest score of any detector"
    text += (
        f"; a step is flagged, and outlined, at a score of {test.threshold:.3g} or more. "
        if isinstance(rule, Vote)
        else ". A sample is stopped at the first step at which the evidence, cumulated over the steps, is "
        "above the boundary; what it would have become is shown all the same. "
    )
    return text + (
        "Images are seen at once only of samples that are labelled safe, decided safe by every rule, and "
        f"scored below {_doubtful_score(test):.3g} by every detector at every step."
    )


def _doubtful_score(test: Scored) -> float:
    """The score from which on a sample may be unsafe, for one who does not want to see it."""
    return min(test.threshold, 0.5)


def _is_doubted(test: Scored, place: int) -> bool:
    """Whether its label or any detector calls a sample unsafe."""
    return bool(test.label[place] or (test.scores_NSK[place] >= _doubtful_score(test)).any())


def _chosen_examples(test: Scored, rule: Rule, count: int) -> list[int]:
    """Missed unsafe samples, blocked or marked safe ones, then the first right ones, safe and of a category.

    At least two thirds of the places are for mistakes, half of these for each kind; what one kind does not
    need the other gets. Worst are the unsafe samples that the rule ranks lowest, the safe ones it ranks
    highest; ties go by the mean of the highest scores.
    """
    decisions = rule.decide(test.scores_NSK)
    highest_NS = np.where(np.isnan(test.scores_NSK), -np.inf, test.scores_NSK).max(axis=2)[:, : rule.steps]
    order = np.lexsort((highest_NS.mean(axis=1), rule.ranks(test.scores_NSK)[0]))
    missed = order[(test.label & decisions.safe)[order]].tolist()
    blocked = order[(~test.label & decisions.unsafe)[order]].tolist()[::-1]
    right = decisions.checked & (decisions.unsafe == test.label)
    groups = [members & right for members in (~test.label, *test.categories_NK.T)]
    first = list(dict.fromkeys(int(group.argmax()) for group in groups if group.any()))
    room = count - min(len(first), count // 3)
    missed = missed[: max(-(-room // 2), room - len(blocked))]
    return [*missed, *blocked[: room - len(missed)], *first][:count]


def _verdict(test: Scored, rule: Rule, decisions: Decisions, place: int, capture: CaptureReader) -> str:
    """What was decided and whether it is right; a step is named by its index, from 0."""
    step, is_unsafe = decisions.step[place], test.label[place]
    label = label_text(test.samples[place].categories).replace("|", ", ")
    if not decisions.unsafe[place]:
        kind = "Missed" if is_unsafe else "Cleared"
        return f"{kind}: labelled {label}, decided safe, certain at step {step}"
    columns = rule.attribute(test.scores_NSK[place, : step + 1])
    named = ", ".join(capture.info.category_names[column] for column in columns)
    if not decisions.blocked[place]:
        kind = "Flagged for review" if is_unsafe else "Wrongly flagged for review"
        return f"{kind}: labelled {label}, decided unsafe (named {named}), released and marked, not stopped"
    kind = "Caught" if is_unsafe else "Wrongly blocked"
    return (
        f"{kind}: labelled {label}, decided unsafe (named {named}), stopped at step {step} "
        f"({step + 1} of {capture.info.origin.steps} steps run)"
    )


def _why(rule: Rule, test: Scored, place: int) -> str:
    """What a guard would say of a sample that is decided, in its own words."""
    tracker = rule.tracker()
    for scores_K in test.scores_NSK[place]:
        tracker.see(scores_K.tolist())
        if tracker.outcome is not None:
            break
    return tracker.why


def _tone(test: Scored, decisions: Decisions, place: int) -> Literal["unsafe", "safe", "wrong"]:
    if decisions.unsafe[place] != test.label[place]:
        return "wrong"
    return "unsafe" if test.label[place] else "safe"


def _highest(scores_K: Floats) -> str:
    """The highest score of a step; a detector that is missing could have given a higher one."""
    known = scores_K[~np.isnan(scores_K)]
    if not known.size:
        return "no score"
    return f"{known.max():.2f}" if known.size == scores_K.size else f"at least {known.max():.2f}"


def _png(image_CHW: Tensor) -> bytes:
    pixels = (image_CHW.permute(1, 2, 0) * 255).round().byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
