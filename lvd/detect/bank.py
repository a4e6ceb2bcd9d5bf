"""A whole grid at work: the trunk's features of a step, and the scores of every detector."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lvd.detect.network import HeadDetector, load_detector, load_trunk, trunk_digest
from lvd.errors import LvdError
from lvd.latents.format import step_name, write_atomically
from lvd.latents.integrity import file_sha256
from lvd.latents.reader import CaptureReader

_BATCH = 128


def step_features(capture: CaptureReader, trunk_dir: Path, step: int) -> Tensor:
    """The trunk's features `[samples, D]` float32 of every sample at one step.

    Computed once, by whoever comes first, and kept beside the trunk with the digests of the trunk and the
    capture they belong to.
    """
    path = trunk_dir / "features" / f"{step_name(step)}.safetensors"
    origin = {
        "trunk": trunk_digest(trunk_dir) or "",
        "capture": file_sha256(capture.directory / "manifest.json"),
    }
    if path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                if file.metadata() == origin:
                    stored: Tensor = file.get_tensor("features")
                    return stored
        except SafetensorError:
            pass  # made again below

    trunk = load_trunk(trunk_dir)
    if trunk.encoder.config.latent_shape != capture.info.latent_shape:
        raise LvdError(f"{trunk_dir} was trained on latents {trunk.encoder.config.latent_shape}, not these")
    latents = capture.step(step)
    parts = []
    with torch.inference_mode():
        for rows in _batches(range(len(latents))):
            x0 = torch.from_numpy(latents.read(rows))
            parts.append(trunk.features(x0, torch.full((len(rows),), step)))
    features = torch.cat(parts).clone()
    write_atomically(path, save({"features": features}, metadata=origin))
    return features


def score_step(capture: CaptureReader, run: Path, step: int, rows: Sequence[int]) -> tuple[Tensor, list[str]]:
    """Scores `[len(rows), K]` of every category's detector at one step, and what is missing, in sentences.

    A detector that is missing or unreadable leaves NaN in its column.
    """
    names = capture.info.category_names
    digest = trunk_digest(run / "trunk")
    scores = torch.full((len(rows), len(names)), float("nan"))
    problems = []
    for column, name in enumerate(names):
        directory = run / name / step_name(step) / "detector"
        if not directory.is_dir():
            problems.append(f"{name} {step_name(step)}: not trained")
            continue
        try:
            detector = load_detector(directory, digest)
        except LvdError as error:
            problems.append(f"{name} {step_name(step)}: {error}")
            continue
        with torch.inference_mode():
            if isinstance(detector, HeadDetector):
                features = step_features(capture, run / "trunk", step)[list(rows)]
                scores[:, column] = detector(features).sigmoid()
            else:
                latents = capture.step(step)
                scores[:, column] = torch.cat(
                    [detector(torch.from_numpy(latents.read(part))).sigmoid() for part in _batches(rows)]
                )
    return scores, problems


def _batches(rows: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH]
