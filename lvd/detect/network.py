"""The networks that look at an x0: a VideoMAE encoder (Tong et al., 2022) on latents instead of pixels.

Shapes: B samples, C channels, F frames, H and W in latent pixels, D the encoder's width, K categories.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEModel

from lvd.detect.recipe import EncoderSize

MIN_TOKENS, MAX_TOKENS = 64, 512
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what VideoMAE was trained with


@dataclass(frozen=True)
class EncoderConfig:
    """A VideoMAE encoder for latents of one shape. `patch` and `tubelet` are in latent pixels and frames."""

    latent_shape: tuple[int, int, int, int]  # C, F, H, W
    width: int
    layers: int
    heads: int
    patch: int
    tubelet: int

    @classmethod
    def fitted(cls, size: EncoderSize, latent_shape: tuple[int, int, int, int]) -> "EncoderConfig":
        """Of a size, for latents `[C, F, H, W]`; a patch that is not given is chosen."""
        patch = size.patch or choose_patch(latent_shape, size.tubelet)
        return cls(latent_shape, size.width, size.layers, size.heads, patch, size.tubelet)


def choose_patch(latent_shape: tuple[int, int, int, int], tubelet: int) -> int:
    """The smallest patch, a power of two, that gives at most 512 tokens; more than 64 where possible.

    Tokens drive the cost: on 4x16x64x64 latents patch 2 is 8,192 tokens, patch 8 is 512.
    """
    _, frames, height, width = latent_shape

    def tokens(patch: int) -> int:
        return -(-frames // tubelet) * -(-height // patch) * -(-width // patch)

    patch = 1
    while patch < max(height, width) and (
        tokens(patch) > MAX_TOKENS or (tokens(2 * patch) >= MIN_TOKENS and patch < 2)
    ):
        patch *= 2
    return patch


class Encoder(nn.Module):
    """Standardised latents `[B, C, F, H, W]` -> pooled, normalised features `[B, D]`."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        channels, frames, height, width = config.latent_shape
        self.padding = (  # F.pad counts from the last axis
            *(0, -width % config.patch),
            *(0, -height % config.patch),
            *(0, -frames % config.tubelet),
        )
        self.videomae = VideoMAEModel(
            VideoMAEConfig(
                image_size=[height + self.padding[3], width + self.padding[1]],
                num_frames=frames + self.padding[5],
                num_channels=channels,
                patch_size=config.patch,
                tubelet_size=config.tubelet,
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=4 * config.width,
                initializer_range=config.width**-0.5,  # BERT's 0.02 is too small for a width of 96: it stalls
            )
        )
        # A plain attribute there, which stays on the CPU: each call would copy it, and wait for the GPU.
        embeddings = self.videomae.embeddings
        positions = embeddings.position_embeddings
        del embeddings.position_embeddings
        embeddings.register_buffer("position_embeddings", positions, persistent=False)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x_BCFHW: Tensor) -> Tensor:
        padded = F.pad(x_BCFHW, self.padding)
        tokens_BND = self.videomae(padded.transpose(1, 2)).last_hidden_state  # VideoMAE wants B, F, C, H, W
        return self.norm(tokens_BND.mean(dim=1))  # type: ignore[no-any-return]


class Trunk(nn.Module):
    """One encoder for all steps and categories: `(x0 [B, C, F, H, W], step [B])` -> logits `[B, K]`.

    The pooled features are scaled and shifted by an embedding of the step (FiLM, Perez et al., 2018).
    Input is x0 as captured; it is standardised here, per step and channel. A step that is no whole number is
    a position between two (`lvd.detect.levels`): embedding and standardisation are interpolated.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: EncoderConfig, steps: int, categories: int) -> None:
        super().__init__()
        self.encoder = Encoder(encoder)
        self.scale = nn.Embedding(steps, encoder.width)
        self.shift = nn.Embedding(steps, encoder.width)
        self.output = nn.Linear(encoder.width, categories)
        self.register_buffer("mean", torch.zeros(steps, encoder.latent_shape[0]))
        self.register_buffer("std", torch.ones(steps, encoder.latent_shape[0]))
        nn.init.zeros_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def standardise(self, x_BCFHW: Tensor, step_B: Tensor) -> Tensor:
        mean_BC, std_BC = at_steps(self.mean, step_B), at_steps(self.std, step_B)
        return (x_BCFHW.float() - _as_channels(mean_BC)) / _as_channels(std_BC)

    def pool(self, standardised_BCFHW: Tensor, step_B: Tensor) -> Tensor:
        """Features `[B, D]` of standardised latents: what the outputs and all heads of a step read."""
        pooled_BD = self.encoder(standardised_BCFHW)
        scale_BD, shift_BD = at_steps(self.scale.weight, step_B), at_steps(self.shift.weight, step_B)
        features_BD: Tensor = pooled_BD * (1 + scale_BD) + shift_BD
        return features_BD

    def features(self, x_BCFHW: Tensor, step: float) -> Tensor:
        """Features `[B, D]` of x0 as captured, all of one step or position."""
        step_B = torch.full((len(x_BCFHW),), step, device=x_BCFHW.device)
        return self.pool(self.standardise(x_BCFHW, step_B), step_B)

    def forward(self, x_BCFHW: Tensor, step_B: Tensor) -> Tensor:
        logits_BK: Tensor = self.output(self.pool(self.standardise(x_BCFHW, step_B), step_B))
        return logits_BK


class HeadDetector(nn.Module):
    """A logistic head on the trunk's features of one step: features `[B, D]` -> logits `[B]`."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.output = nn.Linear(width, 1)

    def forward(self, features_BD: Tensor) -> Tensor:
        logits_B1: Tensor = self.output((features_BD - self.mean) / self.std)
        return logits_B1.squeeze(-1)


class NetworkDetector(nn.Module):
    """A whole network for one cell: x0 `[B, C, F, H, W]` as captured -> logits `[B]`."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: EncoderConfig) -> None:
        super().__init__()
        self.encoder = Encoder(encoder)
        self.output = nn.Linear(encoder.width, 1)
        self.register_buffer("mean", torch.zeros(encoder.latent_shape[0]))
        self.register_buffer("std", torch.ones(encoder.latent_shape[0]))

    @classmethod
    def from_trunk(cls, trunk: Trunk, category: int, step: int) -> "NetworkDetector":
        """The trunk as the detector of one cell, its step's scale and shift folded into the norm."""
        detector = cls(trunk.encoder.config)
        detector.encoder.load_state_dict(trunk.encoder.state_dict())
        with torch.no_grad():
            gain, offset = 1 + trunk.scale.weight[step], trunk.shift.weight[step]
            norm = detector.encoder.norm
            norm.weight.mul_(gain)
            norm.bias.mul_(gain).add_(offset)
            detector.output.weight.copy_(trunk.output.weight[category : category + 1])
            detector.output.bias.copy_(trunk.output.bias[category : category + 1])
            detector.mean.copy_(trunk.mean[step])
            detector.std.copy_(trunk.std[step])
        return detector

    def standardise(self, x_BCFHW: Tensor) -> Tensor:
        return (x_BCFHW.float() - _as_channels(self.mean[None])) / _as_channels(self.std[None])

    def classify(self, standardised_BCFHW: Tensor) -> Tensor:
        logits_B1: Tensor = self.output(self.encoder(standardised_BCFHW))
        return logits_B1.squeeze(-1)

    def forward(self, x_BCFHW: Tensor) -> Tensor:
        return self.classify(self.standardise(x_BCFHW))


class PixelDetector(nn.Module):
    """The paper's detector of one cell: decoded frames `[B, 3, F, H, W]` uint8 -> logits `[B]`.

    A VideoMAE classifier of two classes. The logit is the difference of its two: the sigmoid of it is their
    softmax's P(unsafe), its binary cross-entropy their cross-entropy, and it is above 0 where the second is
    their argmax.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: VideoMAEForVideoClassification) -> None:
        super().__init__()
        self.classifier = classifier
        self.register_buffer("mean", torch.tensor([IMAGENET_MEAN]), persistent=False)
        self.register_buffer("std", torch.tensor([IMAGENET_STD]), persistent=False)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Frames, height and width that it reads."""
        return videomae_frames(self.classifier.config)

    def standardise(self, frames_BCFHW: Tensor) -> Tensor:
        return (frames_BCFHW.float() / 255 - _as_channels(self.mean)) / _as_channels(self.std)

    def classify(self, standardised_BCFHW: Tensor) -> Tensor:
        logits_B2: Tensor = self.classifier(standardised_BCFHW.transpose(1, 2)).logits
        return logits_B2[:, 1] - logits_B2[:, 0]

    def forward(self, frames_BCFHW: Tensor) -> Tensor:
        return self.classify(self.standardise(frames_BCFHW))


def videomae_frames(config: VideoMAEConfig) -> tuple[int, int, int]:
    """Frames, height and width that a VideoMAE of this configuration reads."""
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return int(config.num_frames), int(height), int(width)


Detector = HeadDetector | NetworkDetector | PixelDetector


def at_steps(table_SD: Tensor, step_B: Tensor) -> Tensor:
    """Rows `[B, D]` of a table with one a step; of a position between two steps, what lies between theirs."""
    if not step_B.is_floating_point():
        return table_SD[step_B]
    below_B, above_B = step_B.floor().long(), step_B.ceil().long()
    return torch.lerp(table_SD[below_B], table_SD[above_B], (step_B - below_B)[:, None])


def _as_channels(values_BC: Tensor) -> Tensor:
    return values_BC[:, :, None, None, None]
