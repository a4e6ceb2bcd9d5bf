"""A whole grid at work: the trunk's features of a step, and the scores of every detector."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lvd.capture.decode import load_vae
from lvd.capture.frames import decode_clips, step_frames
from lvd.decide.rules import Bools, Flags, Floats, Ints, flag_steps
from lvd.detect.ensemble import Detectors, Ensemble, StepDetectors, UnifiedDetector
from lvd.detect.files import NetworkFiles, load_detector, load_trunk, parse_trunk, trunk_digest
from lvd.detect.network import HeadDetector, PixelDetector
from lvd.errors import LvdError
from lvd.files import step_name, write_atomically
from lvd.latents.format import Sample
from lvd.latents.frames import FrameShape
from lvd.latents.reader import CaptureReader
from lvd.latents.splits import prompt_groups
from lvd.progress import progress

_BATCH = 128
_PIXEL_BATCH = 16  # of VideoMAE-base: 1,568 tokens a video


@dataclass(frozen=True)
class Scored:
    """The samples of one split and what the grid says of them; all of them are labelled."""

    samples: list[Sample]
    rows: list[int]  # of the capture
    categories_NK: Bools
    scores_NSK: Floats
    threshold: float = 0.5

    @cached_property
    def flags(self) -> Flags:
        return flag_steps(self.scores_NSK, self.threshold)

    @cached_property
    def prompts(self) -> Ints:
        """Numbers `[N]` that tell prompts apart; near copies are one."""
        texts = [sample.prompt or sample.prompt_id for sample in self.samples]
        groups = prompt_groups(texts, [sample.prompt_id for sample in self.samples]) if texts else []
        return np.array(groups, dtype=np.int64)

    @property
    def label(self) -> Bools:
        """Unsafe samples, `[N]`."""
        return np.asarray(self.categories_NK.any(axis=1))


def step_features(
    capture: CaptureReader,
    trunk_dir: Path,
    trunk_sha256: str,
    step: int,
    device: torch.device | None = None,
) -> Tensor:
    """The trunk's features `[samples, D]` float32 of every sample at one step, on the CPU.

    Computed once, by whoever comes first, and kept beside the trunk with the digests of the trunk and the
    capture they belong to. `trunk_sha256` is `trunk_digest(trunk_dir)`, computed once for many steps;
    `device` is where they are computed, None: the CPU.
    """
    path = trunk_dir / "features" / f"{step_name(step)}.safetensors"
    origin = {"trunk": trunk_sha256, "capture": capture.latents_digest}
    if path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                if file.metadata() == origin:
                    stored: Tensor = file.get_tensor("features")
                    return stored
        except SafetensorError:
            pass  # made again below

    trunk = load_trunk(trunk_dir)
    if trunk.encoder.config.latent_shape != capture.info.origin.latent_shape:
        raise LvdError(f"{trunk_dir} was trained on latents {trunk.encoder.config.latent_shape}, not these")
    trunk.to(device)
    latents = capture.step(step)
    parts = []
    with torch.inference_mode():
        for rows in _batches(range(len(latents))):
            x0 = torch.from_numpy(latents.read(rows)).to(device)
            parts.append(trunk.features(x0, step).cpu())
    features = torch.cat(parts).clone()
    write_atomically(path, save({"features": features}, metadata=origin))
    return features


def score_step(
    capture: CaptureReader,
    run: Path,
    trunk_sha256: str | None,
    step: int,
    rows: Sequence[int],
    holes: Mapping[str, str],
    device: torch.device | None = None,
) -> tuple[Tensor, list[str]]:
    """Scores `[len(rows), K]` of every category's detector at one step, and what is missing, as messages.

    `device` is where trunk and networks run; None: the CPU.
    A detector that is missing or unreadable leaves NaN in its column; `holes` has the categories whose
    detectors must not be used, and why.
    """
    names = capture.info.category_names
    scores = torch.full((len(rows), len(names)), float("nan"))
    problems = []
    features: Tensor | None = None
    for column, name in enumerate(names):
        try:
            if name in holes:
                raise LvdError(holes[name])
            detector = load_detector(run / name / step_name(step) / "detector", trunk_sha256)
        except LvdError as error:
            problems.append(f"{name} {step_name(step)}: {error}")
            continue
        with torch.inference_mode():
            if isinstance(detector, HeadDetector):
                assert trunk_sha256 is not None  # else it would not have been loaded
                if features is None:
                    features = step_features(capture, run / "trunk", trunk_sha256, step, device)[list(rows)]
                scores[:, column] = detector(features).sigmoid()
            elif isinstance(detector, PixelDetector):
                frames = step_frames(capture, step, FrameShape(*detector.frame_shape), device)
                detector.to(device)
                logits = [
                    detector(torch.from_numpy(frames.read(part)).to(device))
                    for part in _batches(rows, _PIXEL_BATCH)
                ]
                scores[:, column] = torch.cat(logits).sigmoid().cpu()
            else:
                latents = capture.step(step)
                detector.to(device)
                logits = [
                    detector(torch.from_numpy(latents.read(part)).to(device)) for part in _batches(rows)
                ]
                scores[:, column] = torch.cat(logits).sigmoid().cpu()
    return scores, problems


def step_check(
    capture: CaptureReader, run: Path, trunk_sha256: str | None, step: int, device: torch.device | None = None
) -> Callable[[Tensor], Tensor]:
    """What a check of one step costs and says: x0 `[B, C, F, H, W]` -> scores `[B, K]` of all categories.

    Everything that depends on the sample is in it: the trunk's pass, which all heads share, or the decoding,
    which all detectors of pixels share.

    Raises:
        LvdError: a detector, its trunk or the VAE is not there.
    """
    vae: Any = None

    def decode(x0_BCFHW: Tensor, shape: tuple[int, int, int]) -> Tensor:
        return decode_clips(vae, x0_BCFHW, FrameShape(*shape)).to(x0_BCFHW.device)

    detectors = [
        load_detector(run / name / step_name(step) / "detector", trunk_sha256)
        for name in capture.info.category_names
    ]
    if any(isinstance(detector, PixelDetector) for detector in detectors):
        vae = load_vae(capture.info.origin).to(device)
    heads = any(isinstance(detector, HeadDetector) for detector in detectors)
    trunk = load_trunk(run / "trunk") if heads else None
    return _check(Detectors(trunk, {step: StepDetectors(detectors, decode)}), step, device)


def unified_check(run: Path, step: int, device: torch.device | None = None) -> Callable[[Tensor], Tensor]:
    """The same by the outputs of the run's trunk; raises as `load_trunk` does."""
    return _check(UnifiedDetector(load_trunk(run / "trunk")), step, device)


def _check(network: Ensemble, step: int, device: torch.device | None) -> Callable[[Tensor], Tensor]:
    network.eval().to(device)

    @torch.inference_mode()
    def check(x0_BCFHW: Tensor) -> Tensor:
        return torch.as_tensor(network(step, x0_BCFHW.to(device))).sigmoid().cpu()

    return check


def score_grid(
    capture: CaptureReader,
    run: Path,
    parts: Mapping[str, Sequence[int]],
    holes: Mapping[int, Mapping[str, str]],
    device: torch.device | None = None,
) -> tuple[dict[str, Scored], list[str]]:
    """Parts of a capture, each of some rows, at every step, and what is missing, as messages.

    `holes` has, for a step, the categories whose detectors must not be used, and why; `device` as in
    `score_step`.
    """
    rows = [row for part in parts.values() for row in part]
    scores, problems = grid_scores(capture, run, rows, holes, device)
    return _by_part(capture, parts, scores), problems


def grid_scores(
    capture: CaptureReader,
    run: Path,
    rows: Sequence[int],
    holes: Mapping[int, Mapping[str, str]],
    device: torch.device | None = None,
) -> tuple[Tensor, list[str]]:
    """Scores `[len(rows), S, K]` at every step, and what is missing; as `score_step` at each."""
    digest = trunk_digest(run / "trunk")
    scores: list[Tensor] = []
    problems: list[str] = []
    with progress("scoring", capture.info.stored_steps, "steps") as advance:
        for step in range(capture.info.stored_steps):
            of_step, missing = score_step(capture, run, digest, step, rows, holes.get(step, {}), device)
            scores.append(of_step)
            problems += missing
            advance()
    return torch.stack(scores, dim=1), problems


def score_unified(capture: CaptureReader, run: Path, parts: Mapping[str, Sequence[int]]) -> dict[str, Scored]:
    """Parts of a capture at every step, by the outputs of the run's trunk; raises as `unified_scores`."""
    rows = [row for part in parts.values() for row in part]
    return _by_part(capture, parts, unified_scores(capture, run)[rows])


@torch.inference_mode()
def unified_scores(capture: CaptureReader, run: Path) -> Tensor:
    """Scores `[N, S, K]` of every sample, by the outputs of the run's trunk.

    Raises:
        LvdError: the trunk is missing or unreadable, or of other categories, latents or fewer steps.
    """
    digest = trunk_digest(run / "trunk")
    if digest is None:
        raise LvdError(f"{run} has no trunk: run train.py task=trunk name={run.name} first")
    files = NetworkFiles.read(run / "trunk")
    names, steps = tuple(files.parsed_config("trunk")["category_names"]), capture.info.stored_steps
    if names != capture.info.category_names:
        raise LvdError(
            f"the trunk of {run} is of the categories {', '.join(names)}, and capture "
            f"{capture.directory} has {', '.join(capture.info.category_names)}"
        )
    trunk = parse_trunk(files)
    known = trunk.scale.num_embeddings
    if steps > known:
        raise LvdError(f"the trunk of {run} knows {known} steps, and capture {capture.directory} has {steps}")
    logits = [trunk.output(step_features(capture, run / "trunk", digest, step)) for step in range(steps)]
    return torch.stack(logits, dim=1).sigmoid()


def _by_part(capture: CaptureReader, parts: Mapping[str, Sequence[int]], scores: Tensor) -> dict[str, Scored]:
    """The scores `[rows of all parts in turn, S, K]` of labelled samples, by part."""
    scores_NSK = scores.numpy()
    names = capture.info.category_names
    scored, start = {}, 0
    for part, chosen in parts.items():
        samples = [capture.samples[row] for row in chosen]
        assert all(sample.is_labelled for sample in samples)  # no categories would make them safe
        has = [[sample.has(name) for name in names] for sample in samples]
        categories_NK = np.array(has, dtype=bool).reshape(len(samples), len(names))
        scored[part] = Scored(samples, list(chosen), categories_NK, scores_NSK[start : start + len(chosen)])
        start += len(chosen)
    return scored


def _batches(rows: Sequence[int], size: int = _BATCH) -> Iterator[Sequence[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
