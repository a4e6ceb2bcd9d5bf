"""What a sampling leaves behind, in the parts of a pipeline that it steps and in what it raises."""

import traceback
from typing import Any


class StateBefore:
    """The attributes that a scheduler or guider has now, for those that may hold latents later.

    Multistep schedulers keep the x0 or noise of the last steps, some guiders the mean of their predictions.
    Lists, dictionaries and sets are copied, since schedulers change theirs in place. Tensors are not, and
    none is ever written to: a latent that was handed out may share the memory of one that is let go.
    """

    def __init__(self, part: Any) -> None:
        parts = [part, *(inner for inner in vars(part).values() if _steps(inner))]
        self._kept = [
            (part, {name: _copied(value) for name, value in vars(part).copy().items()}) for part in parts
        ]

    def give_back(self) -> None:
        """Every attribute that may hold a latent is as it was before.

        Numbers, timesteps and noise levels stay as they are: they hold nothing of a sample, and a pipeline
        in another thread, which shares the scheduler, may have set them meanwhile. So does an interceptor of
        `step`, which whoever put it there takes away.
        """
        for part, before in self._kept:
            now = vars(part)
            for name, value in now.copy().items():  # another thread may add to it
                if name == "step" or _is_plain(value):
                    continue
                if name in before:
                    now[name] = _copied(before[name])
                else:
                    now.pop(name, None)


def clear_locals(error: BaseException, handled: BaseException | None) -> None:
    """Let go of the local variables of the functions that an exception has left, which may be latents.

    Its traceback keeps them alive, and reporters of errors show them. Also of those it came from or groups,
    but for `handled`, which was being handled when the sampling began. Files and lines stay.
    """
    left, seen = [error], {id(handled)}
    while left:
        error = left.pop()
        if id(error) not in seen:
            seen.add(id(error))
            traceback.clear_frames(error.__traceback__)
            left += [cause for cause in (error.__cause__, error.__context__) if cause is not None]
            left += error.exceptions if isinstance(error, BaseExceptionGroup) else ()


def _steps(value: Any) -> bool:
    """Whether it is a scheduler within a scheduler, such as UniPC's `solver_p`."""
    return hasattr(type(value), "step") and hasattr(type(value), "set_timesteps")


def _copied(value: Any) -> Any:
    return value.copy() if type(value) in (list, dict, set) else value


def _is_plain(value: Any) -> bool:
    """Whether this can be no latent, and hold none: numbers, words, and tables of one axis."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str) or getattr(value, "ndim", 2) < 2
