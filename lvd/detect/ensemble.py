"""Many detectors as one network: what a check computes, in a guard and wherever its cost is measured."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lvd.detect.network import Detector, HeadDetector, PixelDetector, Trunk

# (x0 `[B, C, F, H, W]`, (frames, height, width)) -> decoded frames `[B, 3, F, H, W]` uint8 of that size.
Decode = Callable[[Tensor, tuple[int, int, int]], Tensor]


class StepDetectors(nn.Module):
    """All categories' detectors of one step: `(x0 [B, C, F, H, W], features [B, D])` -> logits `[B, K]`.

    The heads among them are one matrix product, their standardisation folded into it. `decode` makes the
    frames that detectors of pixels read, once for all that read the same.
    """

    weight: Tensor
    bias: Tensor
    columns: Tensor

    @torch.no_grad()
    def __init__(self, detectors: Sequence[Detector], decode: Decode | None = None) -> None:
        super().__init__()
        heads = {column: d for column, d in enumerate(detectors) if isinstance(d, HeadDetector)}
        self.categories = len(detectors)
        self.has_heads = bool(heads)
        self.networks = nn.ModuleDict(
            {str(column): d for column, d in enumerate(detectors) if column not in heads}
        )
        self._decode = decode
        if heads:
            weights = [head.output.weight.double().squeeze(0) / head.std.double() for head in heads.values()]
            biases = [
                head.output.bias.double().squeeze(0) - weight @ head.mean.double()
                for head, weight in zip(heads.values(), weights, strict=True)
            ]
            self.register_buffer("weight", torch.stack(weights).float())  # [heads, D]
            self.register_buffer("bias", torch.stack(biases).float())  # [heads]
            self.register_buffer("columns", torch.tensor(list(heads)))  # [heads]

    def forward(self, x0_BCFHW: Tensor, features_BD: Tensor | None) -> Tensor:
        logits_BK = x0_BCFHW.new_empty(len(x0_BCFHW), self.categories, dtype=torch.float32)
        if self.has_heads:
            assert features_BD is not None
            logits_BK.index_copy_(1, self.columns, features_BD @ self.weight.T + self.bias)
        frames: dict[tuple[int, int, int], Tensor] = {}
        for column, network in self.networks.items():
            inputs = x0_BCFHW
            if isinstance(network, PixelDetector):
                assert self._decode is not None  # no bundle takes a detector of pixels
                shape = network.frame_shape
                if shape not in frames:
                    frames[shape] = self._decode(x0_BCFHW, shape)
                inputs = frames[shape]
            logits_BK[:, int(column)] = network(inputs)
        return logits_BK


class Detectors(nn.Module):
    """The detectors of some steps on one trunk: `(step, x0 [B, C, F, H, W])` -> logits `[B, K]` float32.

    At a position between two steps (`lvd.detect.levels`), features are the trunk's of that position, and
    logits lie between those of the two steps' detectors; beyond the last step, they are the last one's.
    """

    def __init__(self, trunk: Trunk | None, steps: Mapping[int, StepDetectors]) -> None:
        super().__init__()
        self.trunk = trunk
        self.steps = nn.ModuleDict({str(step): detectors for step, detectors in steps.items()})
        self._last = max(steps)

    def forward(self, step: float, x0_BCFHW: Tensor) -> Tensor:
        below, above = (min(around, self._last) for around in (math.floor(step), math.ceil(step)))
        lower, upper = self.steps[str(below)], self.steps[str(above)]
        features = None
        if self.trunk is not None and (lower.has_heads or upper.has_heads):
            features = self.trunk.features(x0_BCFHW, step)
        logits: Tensor = lower(x0_BCFHW, features)
        if above == below:
            return logits
        return torch.lerp(logits, upper(x0_BCFHW, features), step - below)


class UnifiedDetector(nn.Module):
    """The trunk's own outputs as the detectors of all steps and categories; called as `Detectors` are."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, step: float, x0_BCFHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.trunk.output(self.trunk.features(x0_BCFHW, step))
        return logits_BK


Ensemble = Detectors | UnifiedDetector
