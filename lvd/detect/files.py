"""A trunk's or detector's directory: config.json says what it is, model.safetensors holds its weights."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from lvd.detect.network import Detector, EncoderConfig, HeadDetector, NetworkDetector, PixelDetector, Trunk
from lvd.errors import LvdError
from lvd.files import atomic_file, file_sha256, sha256, write_atomically

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_KEY_BIAS = ".attention.key.bias"


@dataclass(frozen=True)
class NetworkFiles:
    """The contents of a trunk's or detector's directory: what was read is what gets parsed."""

    directory: Path  # for error messages
    config: bytes  # config.json
    weights: bytes  # model.safetensors

    @classmethod
    def read(cls, directory: Path) -> "NetworkFiles":
        try:
            return cls(
                directory,
                (directory / "config.json").read_bytes(),
                (directory / "model.safetensors").read_bytes(),
            )
        except OSError as error:
            raise LvdError(f"{error.filename} is not readable: {error.strerror}") from None

    @property
    def weights_sha256(self) -> str:
        return sha256(self.weights)

    def parsed_config(self, *kinds: str) -> dict[str, Any]:
        path = self.directory / "config.json"
        try:
            config: dict[str, Any] = json.loads(self.config)
        except ValueError as error:
            raise LvdError(f"{path} is not readable: {error}") from None
        if not isinstance(config, dict) or config.get("kind") not in kinds:
            raise LvdError(f"{path} does not describe a {' or '.join(kinds)}")
        return config

    def build(self, build: Callable[[], ModuleT]) -> ModuleT:
        try:
            return build()
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise LvdError(
                f"{self.directory / 'config.json'} does not describe a network: {error!r}"
            ) from None

    def load_weights(self, module: nn.Module) -> None:
        path = self.directory / "model.safetensors"
        try:
            module.load_state_dict(_as_named_in(module, load(self.weights)))
        except (RuntimeError, ValueError) as error:
            raise LvdError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from None
        except Exception as error:  # safetensors' own error type derives from Exception alone
            raise LvdError(f"{path} is not a safetensors file: {error}") from None
        module.eval()


def _as_named_in(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names that the installed transformers gives them.

    Its releases name the biases of VideoMAE's queries and values differently, and some give one to the keys,
    which changes nothing: it adds the same to all that a softmax compares.
    """
    left = {_of_today(name): weight for name, weight in weights.items() if not name.endswith(_KEY_BIAS)}
    found = {}
    for name, own in module.state_dict().items():
        if name.endswith(_KEY_BIAS):
            found[name] = torch.zeros_like(own)
        elif _of_today(name) in left:
            found[name] = left.pop(_of_today(name))
    return found | left


def _of_today(name: str) -> str:
    return name.replace(".attention.q_bias", ".attention.query.bias").replace(
        ".attention.v_bias", ".attention.value.bias"
    )


def save_trunk(directory: Path, trunk: Trunk, category_names: tuple[str, ...]) -> None:
    """Write config.json and model.safetensors."""
    config = {
        "kind": "trunk",
        "category_names": list(category_names),
        "steps": trunk.scale.num_embeddings,
        "encoder": asdict(trunk.encoder.config),
    }
    _save(directory, config, trunk)


def load_trunk(directory: Path) -> Trunk:
    """Load what `save_trunk` wrote, in eval mode.

    Raises:
        LvdError: a file is missing, unreadable or does not fit the other.
    """
    return parse_trunk(NetworkFiles.read(directory))


def parse_trunk(files: NetworkFiles) -> Trunk:
    """A trunk from its files' contents, in eval mode; raises as `load_trunk` does."""
    config = files.parsed_config("trunk")
    trunk = files.build(
        lambda: Trunk(_encoder_config(config), config["steps"], len(config["category_names"])),
    )
    files.load_weights(trunk)
    return trunk


def save_detector(
    directory: Path, detector: Detector, cell: dict[str, Any], trunk_sha256: str | None
) -> None:
    """Write config.json and model.safetensors; a head carries the digest of its trunk, never a copy."""
    if isinstance(detector, HeadDetector):
        kind = {"kind": "head", "width": detector.output.in_features, "trunk_sha256": trunk_sha256}
    elif isinstance(detector, PixelDetector):
        kind = {"kind": "pixels", "videomae": detector.classifier.config.to_diff_dict()}
    else:
        kind = {"kind": "network", "encoder": asdict(detector.encoder.config)}
    _save(directory, {**kind, **cell}, detector)


def load_detector(directory: Path, trunk_sha256: str | None) -> Detector:
    """Load what `save_detector` wrote, in eval mode.

    Raises:
        LvdError: a file is missing, unreadable or does not fit the other, or the detector is a head of
            another trunk than the one with `trunk_sha256`.
    """
    return parse_detector(NetworkFiles.read(directory), trunk_sha256)


def parse_detector(files: NetworkFiles, trunk_sha256: str | None) -> Detector:
    """A detector from its files' contents, in eval mode; raises as `load_detector` does."""
    config = files.parsed_config("head", "network", "pixels")
    detector: Detector
    if config["kind"] == "network":
        detector = files.build(lambda: NetworkDetector(_encoder_config(config)))
    elif config["kind"] == "pixels":
        detector = files.build(lambda: PixelDetector(_videomae(config["videomae"])))
    elif trunk_sha256 is not None and config.get("trunk_sha256") == trunk_sha256:
        detector = files.build(lambda: HeadDetector(config["width"]))
    else:
        raise LvdError(f"{files.directory} is a head of another trunk than this run's: train it again")
    files.load_weights(detector)
    return detector


def trunk_digest(directory: Path) -> str | None:
    """SHA-256 of a trunk's weights, or None where there is no trunk."""
    path = directory / "model.safetensors"
    return file_sha256(path) if path.is_file() else None


def _encoder_config(config: dict[str, Any]) -> EncoderConfig:
    channels, frames, height, width = config["encoder"]["latent_shape"]
    return EncoderConfig(**{**config["encoder"], "latent_shape": (channels, frames, height, width)})


def _videomae(config: dict[str, Any]) -> VideoMAEForVideoClassification:
    try:
        return VideoMAEForVideoClassification(VideoMAEConfig(**config))
    except (
        Exception
    ) as error:  # transformers' own, of a value of the wrong type, derives from Exception alone
        raise ValueError(str(error)) from None


def _save(directory: Path, config: dict[str, Any], module: nn.Module) -> None:
    """The weights come first, each file whole: a directory with a config.json is complete."""
    with atomic_file(directory / "model.safetensors") as partial:
        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, partial)
    write_atomically(directory / "config.json", (json.dumps(config, indent=2) + "\n").encode())
