"""Private parts of other libraries that lvd relies on: an upgrade that moves one fails here, by its name.

Each test is a row of the table in docs/architecture.md.
"""

import logging
import multiprocessing
import re
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from plotly.offline import get_plotlyjs
from transformers.models.videomae.modeling_videomae import VideoMAEEmbeddings

from lvd.detect.network import Encoder, EncoderConfig
from support import tiny
from support.commands import ROOT
from support.pipelines import TINY


def test_hydra_get_args_parser() -> None:
    """Flags may stand anywhere: lvd.entry."""
    from hydra._internal.utils import get_args_parser

    found = get_args_parser().parse_intermixed_args(["a=1", "-m", "b=2"])
    assert found.overrides == ["a=1", "b=2"]
    assert found.multirun is True
    assert {"run", "cfg", "info", "resolve", "help", "shell_completion"} <= set(vars(found))


def test_joblib_loky_process_name() -> None:
    """A job under joblib leaves Ctrl-C to the process that started it: lvd.entry."""
    from joblib.externals.loky.backend.process import LokyProcess

    assert isinstance(process := LokyProcess(), multiprocessing.process.BaseProcess)
    assert process.name.startswith("LokyProcess")


def test_lightning_loggers() -> None:
    """What Lightning says of a job goes to its job.log: lvd.sweep.log."""
    import lightning.fabric
    import lightning.pytorch  # noqa: F401

    for name in ("lightning.pytorch", "lightning.fabric"):
        assert name in logging.root.manager.loggerDict


def test_wandb_settings() -> None:
    """Nothing of the machine is sent: lvd's runs of wandb."""
    import wandb

    settings = wandb.Settings(x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False)
    assert settings.x_disable_stats
    assert settings.x_disable_machine_info
    assert not settings.x_save_requirements


def test_numpy_scalar() -> None:
    """Numbers of NumPy in the files of torch.save: what they are made by has this name."""
    made_by = np.float64(0).__reduce__()[0]
    assert f"{made_by.__module__}.{made_by.__qualname__}" == "numpy._core.multiarray.scalar"


def test_transformers_position_embeddings() -> None:
    """VideoMAE's positions move to a GPU with it: lvd.detect.network."""
    config = EncoderConfig((2, 2, 4, 4), width=8, layers=1, heads=2, patch=2, tubelet=1)
    moved = Encoder(config).videomae.embeddings
    plain = VideoMAEEmbeddings(moved.config)
    assert torch.equal(moved.get_buffer("position_embeddings"), plain.position_embeddings)
    assert "position_embeddings" in vars(plain)  # a buffer there would make this needless


def test_torch_orig_mod() -> None:
    """A compiled network is recognised as itself: lvd.sampling.fingerprint."""
    source = Path(torch.__file__).parent / "_dynamo" / "eval_frame.py"  # whose import takes ten seconds
    assert "self._orig_mod = mod" in source.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "SASolver", "UniPCMultistep"]
)
def test_diffusers_sigma_to_alpha_sigma_t(name: str) -> None:
    """x0 of the exponential integrators: lvd.sampling.x0."""
    scheduler = getattr(diffusers, f"{name}Scheduler")()
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(torch.tensor(0.75))
    assert alpha == pytest.approx(0.8)
    assert sigma == pytest.approx(0.6)


@pytest.mark.parametrize(
    "name",
    [
        "DDIM",
        "DDPM",
        "DEISMultistep",
        "DPMSolverMultistep",
        "DPMSolverSinglestep",
        "EDMDPMSolverMultistep",
        "LCM",
        "SASolver",
        "UniPCMultistep",
    ],
)
def test_diffusers_threshold_sample(name: str) -> None:
    """x0 where a scheduler thresholds: lvd.sampling.x0."""
    scheduler = getattr(diffusers, f"{name}Scheduler")()
    thresholded = scheduler._threshold_sample(torch.full((1, 4, 2), 3.0))
    assert thresholded.shape == (1, 4, 2)
    assert thresholded.abs().max() <= 1


def test_diffusers_flow_match_lcm_scale_factors() -> None:
    """A scheduler that enlarges the latent between its steps has no x0 of one size: lvd.sampling.x0."""
    scheduler = diffusers.FlowMatchLCMScheduler(scale_factors=[0.5, 1.0], upscale_mode="bicubic")
    assert scheduler._scale_factors == [0.5, 1.0]
    assert scheduler._upscale_mode == "bicubic"


def test_diffusers_cache_config() -> None:
    """The step cache of a network: lvd.sampling.caches."""
    network = transformer_of("WanPipeline")
    assert network._cache_config is None
    config = diffusers.TaylorSeerCacheConfig()
    network.enable_cache(config)
    assert network._cache_config is config


def test_diffusers_reset_stateful_cache() -> None:
    """A step cache is emptied: lvd.sampling.caches."""
    network = transformer_of("WanPipeline")
    network.enable_cache(diffusers.TaylorSeerCacheConfig())
    network._reset_stateful_cache()


def test_diffusers_hook() -> None:
    """Step caches that were applied by hand are hooks, in modules of these names: lvd.sampling.caches."""
    network = transformer_of("LattePipeline")
    diffusers.hooks.apply_first_block_cache(network, diffusers.FirstBlockCacheConfig())
    registries = [getattr(module, "_diffusers_hook", None) for module in network.modules()]
    hooks = [hook for registry in registries if registry for hook in registry.hooks.values()]
    modules = {type(hook).__module__ for hook in hooks}
    assert any(module.endswith(("_cache", "_broadcast")) for module in modules)


def test_diffusers_free_noise_context() -> None:
    """The windows of FreeNoise: lvd.sampling.fingerprint."""
    pipe = next(each for each in TINY if each.free_noise).build()
    pipe.enable_free_noise(context_length=8, context_stride=4)
    assert (pipe._free_noise_context_length, pipe._free_noise_context_stride) == (8, 4)
    assert pipe.free_noise_enabled is True


def test_diffusers_execution_device() -> None:
    """Where a pipeline runs whose models are offloaded: lvd.capture.clips."""
    pipe = next(tiny for tiny in TINY if tiny.name == "WanPipeline").build()
    assert pipe._execution_device == pipe.device
    pipe.enable_model_cpu_offload(device="cpu")
    assert pipe._execution_device == torch.device("cpu:0") != pipe.device


def test_diffusers_safe_fusing() -> None:
    """A LoRA that was fused: lvd.sampling.fingerprint."""
    from peft import LoraConfig

    network = tiny.build_unet()
    network.add_adapter(LoraConfig(r=1, target_modules=["to_q"]), "one")
    assert "_safe_fusing" not in vars(network)
    network.fuse_lora()
    assert "_safe_fusing" in vars(network)
    assert network.lora_scale == 1.0


def test_peft_layers() -> None:
    """The scales and the state of adapters: lvd.sampling.fingerprint."""
    from peft import LoraConfig

    network = tiny.build_unet()
    network.add_adapter(LoraConfig(r=1, lora_alpha=2, target_modules=["to_q"]), "one")
    assert list(network.peft_config) == ["one"]
    layer: Any = next(module for module in network.modules() if hasattr(module, "merged_adapters"))
    assert list(layer.active_adapters) == ["one"]
    assert layer.disable_adapters is False
    assert list(layer.merged_adapters) == []
    assert layer.scaling == {"one": 2.0}


def test_plotly_full_layout() -> None:
    """Where a heatmap's cells are on the page: the pages' scripts. The browser tests click there."""
    script = get_plotlyjs()
    for name in ("_fullLayout", "_offset", "_length"):
        assert name in script, name


def transformer_of(name: str) -> Any:
    return next(each for each in TINY if each.name == name).build().transformer


def test_the_table_in_the_docs_lists_each_of_these_tests() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\|.*\| `(test_\w+)` \|$", text, re.MULTILINE)
    here = [name for name in vars(sys.modules[__name__]) if name.startswith("test_")]
    assert sorted(listed) == sorted(set(here) - {"test_the_table_in_the_docs_lists_each_of_these_tests"})
