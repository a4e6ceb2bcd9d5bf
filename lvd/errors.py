"""The one exception that is meant for a person, and what raises it for a setting."""


class LvdError(Exception):
    """A user's mistake or bad data, told in one sentence: what is wrong, where, and what to do.

    The entry points print it without a traceback and exit with status 1.
    """


def require(condition: bool, sentence: str) -> None:
    """Refuse a setting that is out of its range.

    Raises:
        LvdError: `sentence`, where the condition does not hold.
    """
    if not condition:
        raise LvdError(sentence)


def require_one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a setting that is not one of its choices.

    Raises:
        LvdError: names the choices.
    """
    require(value in allowed, f"{key}={value} must be one of {', '.join(allowed)}")
