"""A VideoMAE of somebody else's training, which detectors of pixels start from: a hub id or a directory."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig, VideoMAEConfig, VideoMAEForVideoClassification
from transformers.utils import logging

from lvd.detect.network import PixelDetector, videomae_frames
from lvd.detect.recipe import DetectorRecipe
from lvd.errors import LvdError
from lvd.files import file_sha256, sha256
from lvd.latents.frames import FrameShape

T = TypeVar("T")


@dataclass(frozen=True)
class Pretrained:
    """Where the weights are. Only safetensors are read, never a pickle."""

    path: str
    revision: str | None = None

    @classmethod
    def of(cls, recipe: DetectorRecipe) -> "Pretrained | None":
        """The one that a recipe's detectors start from; it names none: None."""
        return None if recipe.pretrained is None else cls(recipe.pretrained, recipe.revision)

    @cached_property
    def config(self) -> VideoMAEConfig:
        """Its configuration, as that of a classifier of safe and unsafe.

        Raises:
            LvdError: it cannot be had, or is not a VideoMAE of RGB frames.
        """
        config = self._loaded(lambda: AutoConfig.from_pretrained(self.path, **self._options, num_labels=2))
        if not isinstance(config, VideoMAEConfig) or config.num_channels != 3:
            raise LvdError(f"detector.pretrained={self.path} is not a VideoMAE of RGB frames")
        return config

    @property
    def frame_shape(self) -> FrameShape:
        return FrameShape(*videomae_frames(self.config))

    @property
    def weights_bytes(self) -> int:
        """How much a detector that starts from it takes on disk."""
        with torch.device("meta"):
            classifier = VideoMAEForVideoClassification(self.config)
        return sum(4 * parameter.numel() for parameter in classifier.parameters())

    def detector(self) -> PixelDetector:
        """A detector that starts from it. What a classifier has beyond the encoder is drawn at random, unless
        it is there for two classes.

        Raises:
            LvdError: the weights cannot be had, or are not those of the configuration's encoder.
        """
        classifier, found = self._loaded(
            lambda: VideoMAEForVideoClassification.from_pretrained(
                self.path,
                **self._options,
                config=self.config,
                ignore_mismatched_sizes=True,  # a classifier of other classes gives its encoder
                output_loading_info=True,
                use_safetensors=True,
            )
        )
        lost = [name for name in found["missing_keys"] if name.startswith("videomae.")]
        lost += [str(each) for each in found["mismatched_keys"] if "videomae." in str(each)]
        if lost:
            raise LvdError(
                f"detector.pretrained={self.path} lacks weights of its encoder: {sorted(lost)[0]} and "
                f"{len(lost) - 1} more"
            )
        return PixelDetector(classifier.float())

    @cached_property
    def identity(self) -> str:
        """What stands for the weights: of a directory its name and the digest of its files, wherever it is.

        Raises:
            LvdError: a directory has no safetensors.
        """
        directory = Path(self.path)
        if not directory.is_dir():
            return self.path if self.revision is None else f"{self.path}@{self.revision}"
        files = [directory / "config.json", *sorted(directory.glob("*.safetensors"))]
        if len(files) < 2 or not files[0].is_file():
            raise LvdError(f"detector.pretrained={self.path} has no config.json and model.safetensors")
        digest = sha256("".join(map(file_sha256, files)).encode())
        return f"{directory.resolve().name} sha256:{digest[:12]}"

    @property
    def _options(self) -> dict[str, Any]:
        return {} if self.revision is None else {"revision": self.revision}

    def _loaded(self, load: Callable[[], T]) -> T:
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()  # else it reports the weights that are missing, which is made here
        logging.disable_progress_bar()
        try:
            return load()
        except Exception as error:  # the hub, the network, JSON and safetensors have their own
            reason = " ".join(str(error).split())
            raise LvdError(f"detector.pretrained={self.path} cannot be loaded: {reason[:200]}") from None
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
