"""What the benchmarks' command lines share: help is the module's text.

And the settings of lvd's own commands, where a benchmark takes them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig

from lvd.config import TrainConfig
from lvd.errors import LvdError
from lvd.typed import typed

ROOT = Path(__file__).resolve().parent.parent


def composed(command: str, settings: Sequence[str]) -> DictConfig:
    """What `capture`, `train` or `evaluate` takes by default, but for these settings.

    Raises:
        LvdError: there is no such setting, or it takes no such value.
    """
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        try:
            return compose(command, list(settings))
        except HydraException as error:
            raise LvdError(str(error).splitlines()[0]) from None


def train_config(settings: Sequence[str]) -> TrainConfig:
    """The same of train.py, typed; on the CPU, unless the settings say otherwise."""
    return typed(composed("train", ["accelerator=cpu", *settings]), TrainConfig)


def parser(text: str | None) -> argparse.ArgumentParser:
    """One whose `--help` shows the text as it is written."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
