"""How a pipeline is called: by a capture, and in the same way by the guard that is made from it."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from lvd.errors import LvdError
from lvd.sampling.fingerprint import Pipeline, is_modular

# The scale of classifier-free guidance; Stable Video Diffusion's rises from frame to frame.
_GUIDANCE = ("guidance_scale", "max_guidance_scale")


def call_arguments(
    pipe: Pipeline,
    steps: int,
    guidance: float | None,
    call: Mapping[str, Any],
    samples: int,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The arguments of one call beside its prompts: the capture's, over which go those `given`.

    Raises:
        LvdError: the pipeline does not take what it should be given.
    """
    arguments = {**own_arguments(pipe, steps, guidance, call), **(given or {})}
    if isinstance(arguments.get("negative_prompt"), str) and not makes_one(pipe):  # most take one a prompt
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * samples
    return arguments


def own_arguments(
    pipe: Pipeline, steps: int, guidance: float | None, call: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a capture's calls that are the same for all its samples.

    Raises:
        LvdError: the pipeline takes no guidance scale, and one is given.
    """
    return {"num_inference_steps": steps, **guidance_argument(pipe, guidance), **call}


def guidance_argument(pipe: Pipeline, guidance: float | None) -> dict[str, float]:
    """The guidance scale by the name that the pipeline has for it; without one, what it does by itself.

    Raises:
        LvdError: the pipeline takes none.
    """
    if guidance is None:
        return {}
    named = [name for name in _GUIDANCE if name in inputs_of(pipe)]
    for name in (*named, *_GUIDANCE):  # any name will do where it takes any
        if takes(pipe, name):
            return {name: guidance}
    raise LvdError(
        f"{type(pipe).__name__} takes no guidance_scale: set pipeline.guidance=null, "
        "and it is guided as its repository says"
    )


def prompt_argument(pipe: Pipeline, prompts: Sequence[str]) -> dict[str, Any]:
    """The prompts of a call in the form that the pipeline takes them; nothing for one without prompts.

    Raises:
        LvdError: there are several, and the pipeline takes one.
    """
    if not takes(pipe, "prompt"):
        return {}
    if not makes_one(pipe):
        return {"prompt": list(prompts)}
    if len(prompts) > 1:
        raise LvdError(f"FreeNoise of {type(pipe).__name__} takes one prompt a call")
    return {"prompt": prompts[0]}


def makes_one(pipe: Pipeline) -> bool:
    """Whether a call makes one video, of a prompt and a generator that are no lists: FreeNoise."""
    return bool(getattr(pipe, "free_noise_enabled", False))


def takes(pipe: Pipeline, argument: str) -> bool:
    """Whether a call of `pipe` has an argument of this name."""
    if argument in inputs_of(pipe):
        return True
    parameters = inspect.signature(pipe).parameters.values()
    return not is_modular(pipe) and any(p.kind is p.VAR_KEYWORD for p in parameters)


def inputs_of(pipe: Pipeline) -> dict[str, Any]:
    """The arguments of a call by name, with their defaults; a modular pipeline's are those of its blocks."""
    if is_modular(pipe):
        return {each.name: each.default for each in pipe.blocks.inputs if each.name is not None}
    return {name: parameter.default for name, parameter in inspect.signature(pipe).parameters.items()}


def free_models(pipe: Pipeline) -> None:
    """What a pipeline does at the end of a call, where one did not get there: send offloaded models back."""
    free = getattr(pipe, "maybe_free_model_hooks", None)
    if free is not None:
        free()


def call_for_videos(pipe: Pipeline, arguments: Mapping[str, Any]) -> Any:
    """Call a pipeline, and return its videos in the form of `output_type`, one a sample; no sound."""
    if is_modular(pipe):
        return pipe(output="videos", **arguments)
    output = pipe(return_dict=False, **arguments)
    # Stable Video Diffusion alone returns the videos themselves, and no tuple.
    return output[0] if isinstance(output, tuple) else output
