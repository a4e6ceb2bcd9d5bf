"""What the entry points share: a person's mistake ends in one sentence, not in a traceback."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from lvd.errors import LvdError


def run(main: Callable[[], None]) -> None:
    """Call `main`; a user's mistake is printed as a sentence and exits with status 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print a traceback and exit by itself
    try:
        main()
    except LvdError as error:
        _stop(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        where = " ".join(line.strip() for line in str(error).splitlines()[:2]).strip()
        _stop(": ".join([where, *str(error.__cause__ or "").splitlines()[:1]]))  # its cause says what
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def leave_ctrl_c_to_joblib() -> None:
    """In a process that joblib started: the one that started it gets the signal too, and ends this one."""
    if multiprocessing.current_process().name.startswith("LokyProcess"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def sentences() -> Iterator[None]:
    """Inside a Hydra task: leave with the sentence alone, before Hydra adds its own.

    One of several tasks only fails, so that the others go on: Hydra raises its error when all have ended.
    """
    try:
        yield
    except LvdError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        _stop(str(error))


def _stop(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(1)
