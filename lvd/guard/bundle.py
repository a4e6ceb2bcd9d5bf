"""The bundle: a verified directory with everything that a guard runs from.

bundle.json      the rule, the categories, and what the detectors were captured from
trunk/           config.json and model.safetensors, when there are heads
<category>/step_07/   config.json and model.safetensors of each detector of the first eta steps
README.md        the model card: measured rates and limits
manifest.json    SHA-256 of every other file, canonical; its own SHA-256 is the bundle's digest
"""

import copy
import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lvd.detect.network import (
    HeadDetector,
    NetworkDetector,
    NetworkFiles,
    Trunk,
    parse_detector,
    parse_trunk,
)
from lvd.errors import LvdError
from lvd.latents.format import X_T, has_fields, step_name

BUNDLE_VERSION = 1


@dataclass(frozen=True)
class BundleInfo:
    """bundle.json: the decision rule, and how the latents were made that the detectors know."""

    format_version: int
    eta: int
    lam: float
    threshold: float
    category_names: tuple[str, ...]
    pipeline: str
    revision: str | None
    pipeline_class: str
    fingerprint: dict[str, str]
    scheduler: str
    scheduler_config: dict[str, Any]
    layout: str
    steps: int
    guidance: float | None
    call: dict[str, Any]
    latent_shape: tuple[int, int, int, int]  # C, F, H, W
    measured: dict[str, Any]  # summary.json of the evaluation that exported it
    x0_from: str = X_T  # the latent that the detectors' x0 was computed from


class StepDetectors(nn.Module):
    """All categories' detectors of one step: `(x0 [B, C, F, H, W], features [B, D])` -> logits `[B, K]`.

    The heads among them are one matrix product, their standardisation folded into it.
    """

    weight: Tensor
    bias: Tensor

    @torch.no_grad()
    def __init__(self, detectors: list[HeadDetector | NetworkDetector]) -> None:
        super().__init__()
        heads = {column: d for column, d in enumerate(detectors) if isinstance(d, HeadDetector)}
        self.categories = len(detectors)
        self.head_columns = list(heads)
        self.networks = nn.ModuleDict(
            {str(column): d for column, d in enumerate(detectors) if isinstance(d, NetworkDetector)}
        )
        if heads:
            weights = [head.output.weight.double().squeeze(0) / head.std.double() for head in heads.values()]
            biases = [
                head.output.bias.double().squeeze(0) - weight @ head.mean.double()
                for head, weight in zip(heads.values(), weights, strict=True)
            ]
            self.register_buffer("weight", torch.stack(weights).float())  # [heads, D]
            self.register_buffer("bias", torch.stack(biases).float())  # [heads]

    def forward(self, x0_BCFHW: Tensor, features_BD: Tensor | None) -> Tensor:
        logits_BK = x0_BCFHW.new_empty(len(x0_BCFHW), self.categories, dtype=torch.float32)
        if features_BD is not None:
            logits_BK[:, self.head_columns] = features_BD @ self.weight.T + self.bias
        for column, network in self.networks.items():
            logits_BK[:, int(column)] = network(x0_BCFHW)
        return logits_BK


class Detectors(nn.Module):
    """The detectors of the first eta steps: `(step, x0 [B, C, F, H, W])` -> logits `[B, K]` float32."""

    def __init__(self, trunk: Trunk | None, steps: list[StepDetectors]) -> None:
        super().__init__()
        self.trunk = trunk
        self.steps = nn.ModuleList(steps)

    def forward(self, step: int, x0_BCFHW: Tensor) -> Tensor:
        detectors = self.steps[step]
        features = None
        if self.trunk is not None and detectors.head_columns:
            rows = torch.full((len(x0_BCFHW),), step, device=x0_BCFHW.device)
            features = self.trunk.features(x0_BCFHW, rows)
        logits: Tensor = detectors(x0_BCFHW, features)
        return logits


@dataclass(frozen=True)
class Bundle:
    """A bundle that was verified and loaded."""

    info: BundleInfo
    digest: str
    detectors: Detectors

    def detectors_on(self, device: torch.device) -> Detectors:
        """A copy of the detectors on `device`; the bundle's own stay where they are."""
        return copy.deepcopy(self.detectors).to(device)


def export_bundle(directory: Path, run: Path, info: BundleInfo) -> str:
    """Write the bundle of a trained run, all of it or nothing, and return its digest.

    Raises:
        LvdError: a detector of the first eta steps is missing or unreadable.
    """
    shutil.rmtree(directory, ignore_errors=True)  # one of other detectors or another rule must not stay
    files = {"bundle.json": _canonical(asdict(info)), "README.md": _model_card(info).encode()}
    trunk_sha256 = None
    if (run / "trunk" / "model.safetensors").is_file():
        trunk = NetworkFiles.read(run / "trunk")
        trunk_sha256 = trunk.weights_sha256
        files |= _as_files("trunk", trunk)
    for step in range(info.eta):
        for category in info.category_names:
            detector = NetworkFiles.read(run / category / step_name(step) / "detector")
            parse_detector(detector, trunk_sha256)
            files |= _as_files(f"{category}/{step_name(step)}", detector)
    manifest = _canonical(
        {
            "format_version": BUNDLE_VERSION,
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        }
    )
    partial = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    for name, data in {**files, "manifest.json": manifest}.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_bytes(data)
    partial.replace(directory)
    return hashlib.sha256(manifest).hexdigest()


def load_bundle(directory: Path, digest: str | None = None) -> Bundle:
    """Verify every byte, then load from the bytes that were verified.

    Raises:
        LvdError: a file was changed, added, removed or renamed, the bundle's digest is not `digest`, or
            what it holds is not a bundle.
    """
    found, files = _verified_files(directory, digest)
    info = _parse_info(directory, files.pop("bundle.json", b""))

    def network(name: str) -> NetworkFiles:
        try:
            return NetworkFiles(
                directory / name, files.pop(f"{name}/config.json"), files.pop(f"{name}/model.safetensors")
            )
        except KeyError:
            raise LvdError(f"bundle {directory} has no {name}: export it again with evaluate.py") from None

    trunk = trunk_sha256 = None
    if "trunk/config.json" in files:
        trunk_files = network("trunk")
        trunk, trunk_sha256 = parse_trunk(trunk_files), trunk_files.weights_sha256
    steps = [
        StepDetectors(
            [parse_detector(network(f"{c}/{step_name(step)}"), trunk_sha256) for c in info.category_names]
        )
        for step in range(info.eta)
    ]
    files.pop("README.md", None)
    if files:
        raise LvdError(f"bundle {directory} holds {min(files)}, which is no part of a bundle")
    return Bundle(info, found, Detectors(trunk, steps).eval().requires_grad_(False))


def _verified_files(directory: Path, digest: str | None) -> tuple[str, dict[str, bytes]]:
    """The bundle's digest and the contents of its files, each read once and checked."""
    path = directory / "manifest.json"
    try:
        entries = [entry for entry in directory.rglob("*") if entry.is_symlink() or not entry.is_dir()]
        manifest = path.read_bytes()
    except OSError as error:
        raise LvdError(f"no bundle at {directory}: {error.strerror}") from None
    found = hashlib.sha256(manifest).hexdigest()
    if digest is not None and digest != found:
        raise LvdError(f"bundle {directory} has the digest {found}, not {digest}: it is not the one you mean")
    try:
        listed = json.loads(manifest)
        expected: dict[str, str] = dict(listed["files"])
        sound = _canonical(listed) == manifest and listed["format_version"] == BUNDLE_VERSION
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise LvdError(f"{path} was changed, or is not of bundle version {BUNDLE_VERSION}")

    files = {}
    for entry in entries:
        name = entry.relative_to(directory).as_posix()
        if name == "manifest.json" and not entry.is_symlink():
            continue
        if name not in expected or entry.is_symlink() or not entry.is_file():
            raise LvdError(f"bundle {directory} was tampered with: {name} does not belong to it")
        try:
            files[name] = entry.read_bytes()
        except OSError as error:
            raise LvdError(f"bundle {directory}: {name} is not readable: {error.strerror}") from None
        if hashlib.sha256(files[name]).hexdigest() != expected[name]:
            raise LvdError(f"bundle {directory} was tampered with: {name} was changed")
    for name in expected:
        if name not in files:
            raise LvdError(f"bundle {directory} was tampered with: {name} is missing")
    return found, files


def _parse_info(directory: Path, data: bytes) -> BundleInfo:
    try:
        raw = json.loads(data)
        if not has_fields(raw, BundleInfo) or raw["format_version"] != BUNDLE_VERSION:
            raise ValueError
        channels, frames, height, width = raw["latent_shape"]
        return BundleInfo(
            **{
                **raw,
                "latent_shape": (channels, frames, height, width),
                "category_names": tuple(raw["category_names"]),
            }
        )
    except (KeyError, TypeError, ValueError):
        raise LvdError(f"{directory / 'bundle.json'} is not of bundle version {BUNDLE_VERSION}") from None


def _as_files(name: str, network: NetworkFiles) -> dict[str, bytes]:
    return {f"{name}/config.json": network.config, f"{name}/model.safetensors": network.weights}


def _canonical(value: dict[str, Any]) -> bytes:
    """The one way to write it: any other bytes are not it."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()


def _model_card(info: BundleInfo) -> str:
    measured = info.measured
    rates = "\n".join(
        f"| {title} | {_number(measured[key])} | {_interval(measured[f'{key}_ci'])} |"
        for title, key in (
            ("right decisions", "accuracy"),
            ("unsafe samples caught", "tpr"),
            ("safe samples blocked", "fpr"),
        )
    )
    categories = "\n".join(
        f"| {name} | {values['n']} | {_number(values['tpr'])} | {_interval(values['tpr_ci'])} |"
        for name, values in measured["per_category"].items()
    )
    template = Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")
    return template.format(
        **{
            **vars(info),
            "latent_shape": list(info.latent_shape),
            "guidance": "its own" if info.guidance is None else info.guidance,
        },
        n_test=measured["n_test"],
        rates=rates,
        categories=categories,
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"
