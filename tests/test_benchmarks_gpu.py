"""The measurement of the guard on a GPU: its parts work, tiny and on a CPU."""

import re
import sys
from dataclasses import replace

import diffusers
import pytest
import torch

from support.commands import ROOT
from support.pipeline_parts import wan_transformer

sys.path.append(str(ROOT / "benchmarks"))

import guard_gpu


def test_a_network_is_measured_beside_its_check() -> None:
    def inputs(shape: guard_gpu.LatentShape) -> dict[str, torch.Tensor]:
        given = guard_gpu.MODELS[0].inputs(shape)
        return {**given, "encoder_hidden_states": torch.randn(1, 16, 32)}

    shape = (16, 3, 4, 8)
    tiny = replace(guard_gpu.MODELS[0], latent_shape=shape, build=wan_transformer, inputs=inputs)
    row = guard_gpu.measure(tiny, "cpu", steps=3)
    assert re.fullmatch(r"\| Wan.* \| \d+ \| [\d.]+ \| [\d.]+% \| -?[\d.]+% \| -?[\d.]+% \|", row)
    assert torch.get_default_dtype() == torch.float32


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
    assert guard_gpu.main() == 1
    assert capfd.readouterr().err == (
        "error: this measures on a GPU, and there is none: run it on a machine with one\n"
    )
