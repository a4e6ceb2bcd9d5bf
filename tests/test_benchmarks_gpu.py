"""The measurements on a GPU: their parts work, tiny and on a CPU."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from support.commands import ROOT
from support.pipeline_parts import hunyuan_transformer, wan_transformer

sys.path.append(str(ROOT / "benchmarks"))

import guard_gpu
import trunk_throughput

WAN, HUNYUAN, COGVIDEOX = guard_gpu.MODELS


def tiny_cogvideox() -> Any:
    return diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=16,
        out_channels=16,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=1,
        use_rotary_positional_embeddings=True,
    )


TINY: dict[str, tuple[guard_gpu.Model, Callable[[], Any], dict[str, torch.Tensor]]] = {
    "Wan": (WAN, wan_transformer, {"encoder_hidden_states": torch.randn(1, 16, 32)}),
    "HunyuanVideo": (
        HUNYUAN,
        lambda: hunyuan_transformer(in_channels=16, out_channels=16),
        {
            "encoder_hidden_states": torch.randn(1, 7, 16),
            "encoder_attention_mask": torch.ones(1, 7),
            "pooled_projections": torch.randn(1, 8),
        },
    ),
    "CogVideoX": (COGVIDEOX, tiny_cogvideox, {"encoder_hidden_states": torch.randn(2, 226, 32)}),
}


@pytest.mark.parametrize("name", TINY)
def test_a_network_is_measured_beside_guard_and_recorder(name: str, tmp_path: Path) -> None:
    model, build, smaller = TINY[name]

    def inputs(shape: guard_gpu.LatentShape) -> dict[str, torch.Tensor]:
        return {**model.inputs(shape), **{key: value.bfloat16() for key, value in smaller.items()}}

    tiny = replace(model, latent_shape=(16, 3, 4, 8), build=build, inputs=inputs)
    row = guard_gpu.measure(tiny, "cpu", 5, tmp_path).row(model.name)
    assert len(row.split("|")) == len(guard_gpu.COLUMNS) + 2
    assert re.fullmatch(rf"\| {name}.* \| \d+ \| [\d.]+ \| [\d.]+( \| -?[\d.]+ \| -?[\d.]+%){{3}} \|", row)
    assert torch.get_default_dtype() == torch.float32
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.parametrize("model", guard_gpu.MODELS, ids=lambda model: model.name)
def test_its_sizes_are_those_of_the_models(model: guard_gpu.Model) -> None:
    with torch.device("meta"):
        network = model.build()
        inputs = model.inputs(model.latent_shape)
    billions = sum(parameter.numel() for parameter in network.parameters()) / 1e9
    assert 2 * billions == pytest.approx(model.gigabytes, rel=0.1)
    assert isinstance(network, diffusers.ModelMixin)
    (answer,) = network(**inputs, return_dict=False)
    assert answer.shape == inputs["hidden_states"].shape


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["guard_gpu.py"])
    assert guard_gpu.main() == 1
    assert capfd.readouterr().err == (
        "error: this measures on a GPU, and there is none: run it on a machine with one\n"
    )


def test_a_trunks_training_is_measured_beside_one_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trunk_throughput, "CAPTURES", {"tiny": ((2, 4, 4, 4), 40, 3)})
    argv = "--latents tiny --workers 0 --batches 6 --precision 32-true --accelerator cpu --scratch"
    monkeypatch.setattr(sys, "argv", ["trunk_throughput.py", *argv.split(), str(tmp_path)])
    trunk_throughput.main()
    rows = [line for line in capfd.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert [row.split(" | ")[2] for row in rows] == ["memory", "0 workers"]
    assert all(row.count("|") == len(trunk_throughput.COLUMNS) + 1 for row in rows)
