"""What a guard recognises a pipeline by: its classes and configurations, read without diffusers."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# A diffusers pipeline; its classes share no useful base type.
Pipeline = Any

_DENOISERS = ("unet", "transformer", "transformer_2", "guider")


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A component's configuration as JSON gives it back, without diffusers' private keys."""
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(public, default=lambda array: array.tolist()))
    return plain


def fingerprint(pipe: Pipeline) -> dict[str, str]:
    """SHA-256 of the class, configuration, adapters and FreeNoise windows of each part that denoises.

    Of the weights it says nothing: other weights of the same architecture have the same fingerprint, and
    so have other adapters of the same name.
    """
    found = {}
    for name in _DENOISERS:
        network = getattr(pipe, name, None)
        if network is not None:
            network = getattr(network, "_orig_mod", network)  # within torch.compile's wrapper
            described = [type(network).__name__, plain_config(network.config), *_plugged_in(pipe, network)]
            text = json.dumps(described, sort_keys=True)
            found[name] = hashlib.sha256(text.encode()).hexdigest()
    return found


def _plugged_in(pipe: Pipeline, network: Any) -> list[Any]:
    """What was switched on after loading, in no configuration: nothing for most pipelines."""
    adapters = sorted(getattr(network, "peft_config", {}))
    free_noise = getattr(pipe, "free_noise_enabled", False)
    return [adapters] * bool(adapters) + (
        [[pipe._free_noise_context_length, pipe._free_noise_context_stride]] if free_noise else []
    )
