"""The one exception that is meant for a person."""


class LvdError(Exception):
    """A user's mistake or bad data, told in one sentence: what is wrong, where, and what to do.

    The entry points print it without a traceback and exit with status 1.
    """
