"""The bundle: a verified directory with everything that a guard runs from.

bundle.json      the rule, the categories, and what the detectors were captured from
trunk/           config.json and model.safetensors, when there are heads
<category>/step_07/   config.json and model.safetensors of each detector of the steps that the rule looks at
README.md        the model card: measured rates and limits
manifest.json    SHA-256 of every other file, canonical; its own SHA-256 is the bundle's digest

A run's bundles lie side by side in `bundles/`, each under its digest, and are never changed. `bundle` points
to the one that was exported last.
"""

import copy
import ctypes
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lvd.decide.rules import Rule, Vote
from lvd.decide.sequential import Sequential
from lvd.decide.written import interval_text, mean_text, rate_text
from lvd.detect.network import (
    HeadDetector,
    NetworkDetector,
    NetworkFiles,
    PixelDetector,
    Trunk,
    parse_detector,
    parse_trunk,
)
from lvd.errors import LvdError
from lvd.latents.format import X_T, has_fields, step_name, sync_directory, write_atomically

BUNDLE_VERSION = 2
_VOTES_VERSION = 1  # eta, lam and threshold stood where the rule stands now
_DIGEST_DIGITS = 12  # of a bundle's digest, in the name of its directory


@dataclass(frozen=True)
class BundleInfo:
    """bundle.json: the decision rule, and how the latents were made that the detectors know.

    One that was read from a bundle of version 1 has the rule that its eta, lam and threshold make.
    """

    format_version: int
    rule: Rule
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
    measured: dict[str, Any]  # the rates in summary.json of the evaluation that exported it, and on what
    x0_from: str = X_T  # the latent that the detectors' x0 was computed from
    layout_given: bool = False  # by hand: lvd does not know the pipeline's class
    step_caches: dict[str, dict[str, Any]] = field(default_factory=dict)  # of the networks that have one
    weights: dict[str, str] = field(default_factory=dict)  # digests of the networks', or not known


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
    """The detectors of the steps that decide: `(step, x0 [B, C, F, H, W])` -> logits `[B, K]` float32."""

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


def export_bundle(
    pointer: Path, run: Path, info: BundleInfo, written: Mapping[str, str] | None = None
) -> str:
    """Write the bundle of a trained run beside earlier ones, point to it, and return its digest.

    It is all there or not at all, in `bundles/<digest>` beside the pointer; earlier bundles stay as they are,
    and the same content is written once. `written` has the SHA-256 that files of the run must have, by their
    path below it.

    Raises:
        LvdError: a detector of a step that the rule looks at is missing, unreadable or not as it was
            written; the bundle of this digest was changed.
    """
    files = _bundle_files(run, info, written or {})
    manifest = _canonical(
        {
            "format_version": BUNDLE_VERSION,
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        }
    )
    digest = hashlib.sha256(manifest).hexdigest()
    bundles = pointer.parent / "bundles"
    bundles.mkdir(parents=True, exist_ok=True)
    _move_old_bundle(pointer, bundles)
    directory = bundles / digest[:_DIGEST_DIGITS]
    if not directory.exists():
        _write_directory(directory, {**files, "manifest.json": manifest})
    try:
        _verified_files(directory, digest)
    except LvdError as error:
        raise LvdError(f"{error}; move {directory} away, and evaluate again") from None
    _point(pointer, directory)
    return digest


def verify_bundle(directory: Path) -> str:
    """The digest of a bundle whose every byte is as it was exported.

    Raises:
        LvdError: as `load_bundle` does.
    """
    return _verified_files(directory, None)[0]


def _bundle_files(run: Path, info: BundleInfo, written: Mapping[str, str]) -> dict[str, bytes]:
    """The contents of a bundle, without its manifest."""

    def network(directory: Path) -> NetworkFiles:
        network = NetworkFiles.read(directory)
        for name, data in _as_files(directory.relative_to(run).as_posix(), network).items():
            if name in written and hashlib.sha256(data).hexdigest() != written[name]:
                raise LvdError(f"{run / name} is not the file that its job wrote: evaluate again")
        return network

    files = {
        "bundle.json": _canonical({**vars(info), "rule": info.rule.as_json()}),
        "README.md": _model_card(info).encode(),
    }
    trunk_sha256 = None
    if (run / "trunk" / "model.safetensors").is_file():
        trunk = network(run / "trunk")
        trunk_sha256 = trunk.weights_sha256
        files |= _as_files("trunk", trunk)
    for step in range(info.rule.steps):
        for category in info.category_names:
            detector = network(run / category / step_name(step) / "detector")
            parse_latent_detector(detector, trunk_sha256)
            files |= _as_files(f"{category}/{step_name(step)}", detector)
    return files


def parse_latent_detector(files: NetworkFiles, trunk_sha256: str | None) -> HeadDetector | NetworkDetector:
    """A detector that a guard can run; raises as `parse_detector` does.

    Raises:
        LvdError: the detector reads decoded frames, and a guard decodes nothing.
    """
    detector = parse_detector(files, trunk_sha256)
    if isinstance(detector, PixelDetector):
        raise LvdError(
            f"{files.directory} reads decoded frames, and a guard decodes nothing before it decides"
        )
    return detector


def _write_directory(directory: Path, files: Mapping[str, bytes]) -> None:
    """A directory with these files, durably, or nothing."""
    partial = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}.tmp")
    try:
        for name, data in files.items():
            write_atomically(partial / name, data)
        for folder in {partial / parent for name in files for parent in Path(name).parents}:
            sync_directory(folder)
        try:
            partial.rename(directory)
        except OSError:
            if not directory.is_dir():
                raise  # else another process has exported the same
        sync_directory(directory.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _point(pointer: Path, directory: Path) -> None:
    """Let `pointer` point to a bundle beside it, in one move: a link, or where that cannot be, a file."""
    target = directory.relative_to(pointer.parent)
    link = pointer.with_name(f".{pointer.name}.{uuid.uuid4().hex}.tmp")
    try:
        link.symlink_to(target)
    except (OSError, NotImplementedError):  # a file system without links
        write_atomically(pointer, f"{target.as_posix()}\n".encode())
    else:
        link.replace(pointer)
    sync_directory(pointer.parent)


def _pointed(pointer: Path) -> Path:
    """The directory that a pointer points to now; any other path is itself."""
    if pointer.is_symlink():
        return Path(os.path.realpath(pointer))
    if pointer.is_file():
        named = pointer.read_bytes()[:64].decode(errors="replace").strip()
        if re.fullmatch(rf"bundles/[0-9a-f]{{{_DIGEST_DIGITS}}}", named):
            return pointer.parent / named
    return pointer


def _move_old_bundle(pointer: Path, bundles: Path) -> None:
    """Earlier versions wrote the bundle into `pointer` itself: it moves to its digest's place, whole.

    Where the system can, the directory and the link to it change places at once.
    """
    if pointer.is_symlink() or not pointer.is_dir():
        return
    manifest = pointer / "manifest.json"
    content = manifest.read_bytes() if manifest.is_file() else b""
    name = hashlib.sha256(content).hexdigest()[:_DIGEST_DIGITS] if content else "without_manifest"
    place, number = bundles / name, 1
    while place.exists():  # the same again, or a bundle that was changed: both stay
        place, number = bundles / f"{name}_{number}", number + 1
    place.unlink(missing_ok=True)  # the link of a move that was killed
    try:
        place.symlink_to(place.relative_to(pointer.parent))  # as it is to be at the pointer's place
        moved = _exchanged(place, pointer)
    except (OSError, NotImplementedError):  # a file system without links
        moved = False
    if not moved:
        place.unlink(missing_ok=True)
        pointer.rename(place)


def _exchanged(one: Path, other: Path) -> bool:
    """Let two paths change places in one move (Linux's renameat2); False: it cannot be done here."""
    at_cwd, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0)


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
            [
                parse_latent_detector(network(f"{c}/{step_name(step)}"), trunk_sha256)
                for c in info.category_names
            ]
        )
        for step in range(info.rule.steps)
    ]
    files.pop("README.md", None)
    if files:
        raise LvdError(f"bundle {directory} holds {min(files)}, which is no part of a bundle")
    return Bundle(info, found, Detectors(trunk, steps).eval().requires_grad_(False))


def _verified_files(directory: Path, digest: str | None) -> tuple[str, dict[str, bytes]]:
    """The bundle's digest and the contents of its files, each read once and checked.

    A link in the place of the directory itself is followed, once: the pointer may move meanwhile.
    """
    try:
        directory = _pointed(directory)
        path = directory / "manifest.json"
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
        sound = _canonical(listed) == manifest and listed["format_version"] in (
            _VOTES_VERSION,
            BUNDLE_VERSION,
        )
    except (KeyError, RecursionError, TypeError, ValueError):
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
        if raw["format_version"] == _VOTES_VERSION:
            raw["rule"] = {"kind": Vote.kind, **{key: raw.pop(key) for key in ("eta", "lam", "threshold")}}
        elif raw["format_version"] != BUNDLE_VERSION:
            raise ValueError
        if not has_fields(raw, BundleInfo):
            raise ValueError
        names = tuple(raw["category_names"])
        channels, frames, height, width = raw["latent_shape"]
        return BundleInfo(
            **{
                **raw,
                "rule": _parse_rule(raw["rule"], len(names)),
                "latent_shape": (channels, frames, height, width),
                "category_names": names,
            }
        )
    except (AttributeError, KeyError, LvdError, RecursionError, TypeError, ValueError):
        path = directory / "bundle.json"
        raise LvdError(f"{path} is not of a bundle version up to {BUNDLE_VERSION}") from None


def _parse_rule(raw: dict[str, Any], categories: int) -> Rule:
    if raw["kind"] == Vote.kind:
        return Vote.from_json(raw)
    if raw["kind"] == Sequential.kind:
        return Sequential.from_json(raw, categories)
    raise ValueError


def _as_files(name: str, network: NetworkFiles) -> dict[str, bytes]:
    return {f"{name}/config.json": network.config, f"{name}/model.safetensors": network.weights}


def _canonical(value: dict[str, Any]) -> bytes:
    """The one way to write it: any other bytes are not it."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()


def _model_card(info: BundleInfo) -> str:
    measured = info.measured
    rates = "\n".join(
        f"| {title} | {rate_text(measured[key])} | {interval_text(measured[f'{key}_ci'])} |"
        for title, key in (
            ("right decisions", "accuracy"),
            ("unsafe samples caught", "tpr"),
            ("safe samples blocked", "fpr"),
        )
    )
    categories = "\n".join(
        f"| {name} | {values['n']} | {rate_text(values['tpr'])} | {interval_text(values['tpr_ci'])} |"
        for name, values in measured["per_category"].items()
    )
    left_out = ""
    if unlabelled := measured.get("n_unlabelled", {}).get("test"):
        left_out = f" ({unlabelled} unlabelled ones are in no rate)"
    if measured["n_left_out"]:
        left_out += (
            f" ({measured['n_left_out']} others were left out: the detectors were trained or selected on "
            f"their prompts, in the capture `{measured['trained_on']}`)"
        )
    template = Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")
    return template.format(
        **{
            **vars(info),
            "latent_shape": list(info.latent_shape),
            "guidance": "its own" if info.guidance is None else info.guidance,
            "layout": f"{info.layout}, given by hand" if info.layout_given else info.layout,
        },
        deciding_steps=info.rule.steps,
        rule_in_words=info.rule.in_words(),
        guarantee=info.rule.guarantee_in_words(),
        n_test=measured["n_test"],
        capture=measured["capture"],
        left_out=left_out,
        rates=rates,
        caught=measured["caught_in_words"],
        blocked=measured["blocked_in_words"],
        intervals=measured["intervals"],
        categories=categories,
        attribution=_attribution(measured["attribution"]),
    )


def _attribution(measured: dict[str, Any]) -> str:
    if measured["n"] == 0:
        return "No sample was caught: how well decisions name categories is not known."
    return (
        f"Of the {measured['n']} unsafe samples caught, the category that the decision names first was right "
        f"for a share of {rate_text(measured['first_right'])} ({interval_text(measured['first_right_ci'])}); "
        f"{mean_text(measured['named_mean'])} are named on average."
    )
