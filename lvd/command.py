"""How a command ends: with a mistake in one sentence, and in silence when nobody reads on."""

import os
import select
import sys
from collections.abc import Callable

from lvd.errors import LvdError

_UNREAD = 128 + 13  # as a shell says of a process that SIGPIPE has ended


def exit_status(main: Callable[[], int | None], *, mistake: int = 1) -> int:
    """Call `main`, and say what its process ends with: what it returns, None being 0.

    An `LvdError` is printed without a traceback, and ends with `mistake`. Where the output goes into a pipe
    whose reader has left (`| head`), the command ends too, and prints nothing more.
    """
    try:
        try:
            status = main() or 0
        except LvdError as error:
            print(f"error: {error}", file=sys.stderr)
            status = mistake
        except SystemExit:  # after --help, say
            _flush()
            raise
        _flush()
    except BrokenPipeError:
        unread = [stream for stream in (1, 2) if _is_unread(stream)]
        if not unread:  # another pipe or a socket
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in unread:  # what is still buffered goes there
            os.dup2(nowhere, stream)
        os.close(nowhere)
        return _UNREAD
    return status


def _flush() -> None:
    """Here, since the interpreter's own, at its end, would complain."""
    if sys.stdout is not None:  # its descriptor was closed
        sys.stdout.flush()


def _is_unread(stream: int) -> bool:
    """Whether this is a pipe that nobody can read from any more."""
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
