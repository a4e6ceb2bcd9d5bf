"""What Hydra composed, as the dataclass that is its schema; keys that nothing reads are refused."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf

from lvd.errors import LvdError

_CHOICES = ("experiment", "hydra/launcher")  # what is chosen by a name and is no field

ConfigT = TypeVar("ConfigT")


def typed(cfg: DictConfig, kind: type[ConfigT]) -> ConfigT:
    """Hydra's configuration as its dataclass, with every range checked.

    Raises:
        LvdError: a value is out of range or missing, or `+key=value` added one that nothing reads.
    """
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, kind)
    for key, place in _added(config):
        raise LvdError(no_setting(key, place))
    return config


def no_setting(key: str, kind: type) -> str:
    """A sentence about a key, with its place, that the dataclass there, `kind`, does not have."""
    place, dot, name = key.rpartition(".")
    settings = [f"{place}{dot}{setting}" for setting in _settings(kind)]
    if not place:
        settings += _CHOICES
    near = [setting for setting in settings if setting.rpartition(".")[2] == name]
    near = near or get_close_matches(key, settings, n=1, cutoff=0.7)
    return f"there is no setting {key}" + (did_you_mean(near) or ": --help lists them")


def did_you_mean(near: Sequence[str]) -> str:
    """The end of a sentence that offers what is near; nothing is: empty."""
    return f": did you mean {' or '.join(near)}?" if near else ""


def _settings(kind: type) -> Iterator[str]:
    """The settings of a dataclass and of those in it, by their overrides' names."""
    types = get_type_hints(kind)
    for setting in fields(kind):
        yield setting.name
        inner = types[setting.name]
        if isinstance(inner, type) and is_dataclass(inner):
            yield from (f"{setting.name}.{name}" for name in _settings(inner))


def _added(config: Any, place: str = "") -> Iterator[tuple[str, type]]:
    """What a dataclass, or one in it, holds besides its fields, and which one does."""
    known = {setting.name for setting in fields(config)}
    for name, value in vars(config).items():
        if name not in known:
            yield f"{place}{name}", type(config)
        elif is_dataclass(value):
            yield from _added(value, f"{place}{name}.")
