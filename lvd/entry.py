"""What the entry points share: a person's mistake ends in one sentence, not in a traceback."""

import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import partial

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from lvd.command import exit_status
from lvd.errors import LvdError
from lvd.typed import did_you_mean, no_setting


def run(main: Callable[[], None]) -> None:
    """Call `main`; a user's mistake is printed as a sentence and exits with status 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print a traceback and exit by itself
    if status := exit_status(partial(_run, main)):
        sys.exit(status)


def _run(main: Callable[[], None]) -> int:
    try:
        _order_arguments()
        main()
    except (HydraException, OmegaConfBaseException) as error:
        raise LvdError(_told(error)) from None
    except OSError as error:
        raise LvdError(_of_a_file(error)) from None
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def settings_by_category(arguments: Sequence[str], keys: Sequence[str]) -> list[str]:
    """`policy.gore=flag` in the form in which Hydra takes it: which categories there are, no schema says."""

    def names_a_category(argument: str) -> bool:
        key, dot, _ = argument.partition("=")[0].partition(".")
        return bool(dot) and key in keys

    return [f"++{argument}" if names_a_category(argument) else argument for argument in arguments]


def leave_ctrl_c_to_joblib() -> None:
    """In a process that joblib started: the one that started it gets the signal too, and ends this one."""
    if multiprocessing.current_process().name.startswith("LokyProcess"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Inside a Hydra task: leave with the sentence alone, before Hydra adds its own.

    One of several tasks only fails, so that the others go on: Hydra raises its error when all have ended.
    """
    try:
        yield
    except (LvdError, OSError) as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        print(f"error: {error if isinstance(error, LvdError) else _of_a_file(error)}", file=sys.stderr)
        sys.exit(1)


def _of_a_file(error: OSError) -> str:
    """What is wrong with a file or a folder that a person can look at; another error is raised again."""
    if error.filename is None:
        raise error
    return f"{error.filename}: {error.strerror}"


def _order_arguments() -> None:
    """Put the flags before the settings, where Hydra takes them alone; people write them anywhere.

    Raises:
        LvdError: flags that do not go together, which Hydra answers with a traceback.
    """
    args = get_args_parser().parse_intermixed_args(sys.argv[1:])
    flags = sys.argv[1:]
    for setting in args.overrides:
        flags.remove(setting)
    sys.argv[1:] = [*flags, *args.overrides]
    modes = {
        "--run": args.run,
        "-m": args.multirun,
        "--cfg": args.cfg is not None,
        "--info": args.info is not None,
        "--shell-completion": args.shell_completion,
    }
    given = [flag for flag, there in modes.items() if there]
    if len(given) > 1:
        raise LvdError(f"{' and '.join(given)} do not go together: leave one of them out")
    if args.resolve and not (args.cfg or args.help):
        raise LvdError("--resolve goes with --cfg: --cfg job --resolve")
    if args.resolve and args.cfg == "hydra":
        raise LvdError("--cfg hydra --resolve: these values are made of the job's, use --cfg all --resolve")


def _told(error: BaseException) -> str:
    """What Hydra or OmegaConf has against a command line, as one sentence."""
    cause = error.__cause__ or error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and is_dataclass(cause.object_type):
        return no_setting(str(cause.full_key), cause.object_type)
    if chosen := re.search(r"In '(experiment/.+)': Could not override '(\w+)'", str(error)):
        file, group = chosen.groups()
        return (
            f"conf/{file}.yaml overrides {group}: take its values with `- /{group}/NAME` in defaults instead"
        )
    lines = [line for line in str(error).splitlines() if line.strip()]
    words = [line.strip() for line in lines if not line.startswith("\t")][:2]
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        near = [f"{group}={option}" for option in get_close_matches(name, error.options)]
        return ". ".join(words) + " " + ", ".join(error.options) + did_you_mean(near)
    if isinstance(error, OverrideParseException):
        words.append("(a setting is written key=value, and a value with spaces or commas 'key=\"a, b\"')")
    sentence = " ".join(words).removeprefix("LvdError raised while resolving interpolation: ")
    return ": ".join([sentence, *str(error.__cause__ or "").splitlines()[:1]])  # its cause says what
