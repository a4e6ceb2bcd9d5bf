"""What a guard recognises a pipeline by: its classes and configurations, read without diffusers."""

import json
from collections.abc import Mapping
from typing import Any

from lvd.files import json_sha256

# A diffusers pipeline; its classes share no useful base type.
Pipeline = Any

BLOCKS = "blocks"  # of a modular pipeline, among the fingerprints of its parts

_GUIDERS = ("guider", "guider_2", "audio_guider")
_DENOISERS = ("unet", "transformer", "transformer_2", *_GUIDERS)


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A component's configuration as JSON gives it back, without diffusers' private keys."""
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(public, default=lambda array: array.tolist()))
    return plain


def fingerprint(pipe: Pipeline) -> dict[str, str]:
    """SHA-256 of the class, configuration, adapters and FreeNoise windows of each part that denoises.

    Of adapters: their names, scales, which are active, switched off or fused, and whether any was ever fused,
    even if it was unloaded since. Of the weights it says nothing, as `weights.py` does: others of the same
    architecture have the same fingerprint, and so have other adapters of the same names, places and scales.
    """
    found = {}
    for name, network in denoisers(pipe).items():
        described = [type(network).__name__, plain_config(network.config), *_plugged_in(pipe, network)]
        found[name] = json_sha256(described)
    if is_modular(pipe):
        found[BLOCKS] = json_sha256(_blocks(pipe))
    return found


def is_modular(pipe: Pipeline) -> bool:
    """Whether it is put together of blocks (Modular Diffusers): its call has no signature of its own."""
    return any(kind.__name__ == "ModularPipeline" for kind in type(pipe).__mro__)


def guiders(pipe: Pipeline) -> list[Any]:
    """What combines the predictions with and without a prompt, where that is a part of its own."""
    return [getattr(pipe, name) for name in _GUIDERS if getattr(pipe, name, None) is not None]


def denoisers(pipe: Pipeline) -> dict[str, Any]:
    """The parts that denoise, by name; of a compiled network the network itself."""
    parts = {name: getattr(pipe, name, None) for name in _DENOISERS}
    return {name: getattr(part, "_orig_mod", part) for name, part in parts.items() if part is not None}


def _plugged_in(pipe: Pipeline, network: Any) -> list[Any]:
    """What was switched on after loading, in no configuration: nothing for most pipelines."""
    free_noise = getattr(pipe, "free_noise_enabled", False)
    switched_off = hasattr(network, "disable") and not network.get_state()["enabled"]  # a guider
    return (
        _adapters(network)
        + ([[pipe._free_noise_context_length, pipe._free_noise_context_stride]] if free_noise else [])
        + (["switched off"] if switched_off else [])
    )


def _blocks(pipe: Pipeline) -> list[Any]:
    """Which blocks a pipeline is made of, in their order, and the settings that they read.

    Blocks go by the name of their class, networks by their own fingerprints.
    """

    def tree(block: Any) -> list[Any]:
        inner = getattr(block, "sub_blocks", {})
        return [type(block).__name__, [[name, tree(each)] for name, each in inner.items()]]

    blocks = pipe.blocks
    settings = {spec.name: pipe.config.get(spec.name) for spec in blocks.expected_configs}
    return [tree(blocks), plain_config(settings)]


def _adapters(network: Any) -> list[Any]:
    """The adapters of a network and the state of each of its adapted layers; nothing where it never had one.

    `fuse_lora` writes an adapter into the weights. The mark that it leaves on the network outlives
    `unload_lora_weights`, and `unfuse_lora` too, which does not give back the very same weights.
    """
    names = sorted(getattr(network, "peft_config", {}))
    layers = {
        name: [
            sorted(layer.active_adapters),
            layer.disable_adapters,
            sorted(layer.merged_adapters),
            {adapter: float(scale) for adapter, scale in getattr(layer, "scaling", {}).items()},
        ]
        for name, layer in named_modules(network)
        if hasattr(layer, "merged_adapters")  # peft's, which a guard does not import
    }
    fused = [["fused", float(network.lora_scale)]] if "_safe_fusing" in vars(network) else []
    return ([names, layers] if names or layers else []) + fused


def named_modules(network: Any) -> list[tuple[str, Any]]:
    """The modules of a part that denoises, if it has any."""
    named = getattr(network, "named_modules", None)  # a guider has none
    return [] if named is None else list(named())
