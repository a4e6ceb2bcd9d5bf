"""What a guard refuses: a sampling that its bundle was not made for, and arguments that go with no bundle."""

from collections.abc import Mapping, Sequence
from typing import Any

from lvd.errors import LvdError
from lvd.guard.options import GuardOptions
from lvd.sampling.call import takes
from lvd.sampling.fingerprint import Pipeline
from lvd.sampling.origin import FREE_ARGUMENTS
from lvd.sampling.pipelines import makes_one_of_a_prompt


def refuse_mismatches(others: Sequence[str], schedule: Sequence[str], options: GuardOptions) -> None:
    """Refuse what a bundle was not made for; a guard that goes by noise level is made for any schedule.

    Raises:
        LvdError: names every difference.
    """
    found = others if options.by_noise_level else [*others, *schedule]
    if found and not options.allow_mismatch:
        raise LvdError(
            f"the bundle was not made for this: {'; '.join(found)} "
            "(allow_mismatch=True goes on all the same, and every decision says so)"
        )


def refuse_arguments(pipe: Pipeline, arguments: Mapping[str, Any]) -> None:
    """Refuse what goes with no bundle.

    Raises:
        LvdError: an argument would let frames out past the guard, is no argument of this pipeline, or leaves
            it open how many samples there are.
    """
    name = type(pipe).__name__
    for key, value in arguments.items():
        if value is None:
            continue
        if key in ("callback", "callback_on_step_end", "return_dict", "output", "state"):
            raise LvdError(f"{key} does not go with a guard: it would hand out what is not decided yet")
        if "embeds" in key:
            raise LvdError(
                f"{key} does not go with a guard, which records prompts: give the prompts themselves"
            )
        if key in FREE_ARGUMENTS and not takes(pipe, key):
            raise LvdError(f"{name} takes no {key}")
    if repeats_of(arguments) > 1 and makes_one_of_a_prompt(pipe):
        raise LvdError(
            f"{name} makes one video of a prompt, whatever num_videos_per_prompt says: "
            "call it once for each video"
        )


def repeats_of(arguments: Mapping[str, Any]) -> int:
    """How many videos a call makes of each prompt."""
    return arguments.get("num_videos_per_prompt") or arguments.get("num_images_per_prompt") or 1
