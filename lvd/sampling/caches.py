"""Step caches: a network's answer of another step in place of its own. No configuration knows of them."""

from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from lvd.sampling.fingerprint import Pipeline, denoisers, named_modules

Cache = dict[str, Any]  # `config`, the class of its configuration in diffusers, and its options


def step_caches(pipe: Pipeline) -> dict[str, Cache]:
    """The cache that `enable_cache` switched on, of each part that denoises and has one, by the part's name.

    Its options are plain values, as JSON gives them back. Of a function among them it says only that it is
    there.
    """
    configs = {name: _config(part) for name, part in denoisers(pipe).items()}
    return {
        name: {"config": type(config).__name__, **_options(config)}
        for name, config in configs.items()
        if config is not None
    }


def unreadable_caches(pipe: Pipeline) -> dict[str, str]:
    """What else caches steps, by the part's name: its options cannot be read.

    A hook of diffusers' that was applied by hand; Cache-DiT and ParaAttention, by the attribute they leave.
    """
    found = {}
    for name, part in denoisers(pipe).items():
        if _config(part) is not None:
            continue
        if getattr(part, "_is_cached", False):
            found[name] = "Cache-DiT or ParaAttention"
        elif hooks := _cache_hooks(part):
            found[name] = min(hooks)
    return found


def caching_networks(pipe: Pipeline) -> list[Any]:
    """The parts that denoise and have a step cache that `enable_cache` switched on."""
    return [part for part in denoisers(pipe).values() if _config(part) is not None]


class StepCache:
    """What a network's step cache holds: the network's features of the last steps, of all samples."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def give_back(self) -> None:
        """It is empty, as classic pipelines leave it when they come to their end, and modular ones do not."""
        self._network._reset_stateful_cache()


def _config(network: Any) -> Any:
    """What `enable_cache` was given; it was not called, or the cache was disabled: None."""
    return getattr(network, "_cache_config", None)


def _options(config: Any) -> dict[str, Any]:
    if not is_dataclass(config):
        return {}
    return {field.name: _plain(getattr(config, field.name)) for field in fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return "a function" if callable(value) else str(value)


def _cache_hooks(network: Any) -> set[str]:
    """The classes of hooks that cache, among the hooks of diffusers in a network."""
    registries = (getattr(module, "_diffusers_hook", None) for _, module in named_modules(network))
    hooks = (hook for registry in registries if registry is not None for hook in registry.hooks.values())
    modules = {type(hook).__name__: type(hook).__module__.rpartition(".")[2] for hook in hooks}
    return {name for name, module in modules.items() if module.endswith(("_cache", "_broadcast"))}
