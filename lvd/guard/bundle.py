"""The bundle: a verified directory with everything that a guard runs from.

bundle.json      the rule, the categories, and what the detectors were captured from
trunk/           config.json and model.safetensors, when there are heads
<category>/step_07/   config.json and model.safetensors of each detector of the steps that the rule looks at
README.md        the model card: measured rates and limits
manifest.json    SHA-256 of every other file, canonical; its own SHA-256 is the bundle's digest
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lvd.decide.rules import Rule, Vote
from lvd.decide.sequential import Sequential
from lvd.detect.ensemble import Detectors, StepDetectors
from lvd.detect.files import NetworkFiles, parse_detector, parse_trunk
from lvd.detect.network import HeadDetector, NetworkDetector, PixelDetector
from lvd.errors import LvdError
from lvd.files import has_fields, sha256, step_name
from lvd.guard.pointer import pointed_to
from lvd.sampling.origin import Origin

BUNDLE_VERSION = 2
_VOTES_VERSION = 1  # eta, lam and threshold stood where the rule stands now


@dataclass(frozen=True)
class BundleInfo:
    """bundle.json: the decision rule, and how the latents were made that the detectors know.

    One that was read from a bundle of version 1 has the rule that its eta, lam and threshold make.
    """

    format_version: int
    rule: Rule
    category_names: tuple[str, ...]
    origin: Origin  # its fields are bundle.json's own
    measured: dict[str, Any]  # the rates in summary.json of the evaluation that exported it, and on what

    def fields(self) -> dict[str, Any]:
        """The fields of bundle.json."""
        own = {name: value for name, value in vars(self).items() if name != "origin"}
        return {**vars(self.origin), **own, "rule": self.rule.as_json()}


@dataclass(frozen=True)
class Bundle:
    """A bundle that was verified and loaded."""

    info: BundleInfo
    digest: str
    detectors: Detectors

    def detectors_on(self, device: torch.device) -> Detectors:
        """A copy of the detectors on `device`; the bundle's own stay where they are."""
        return copy.deepcopy(self.detectors).to(device)


def verify_bundle(directory: Path, digest: str | None = None) -> str:
    """The digest of a bundle whose every byte is as it was exported.

    Raises:
        LvdError: as `load_bundle` does.
    """
    return _verified_files(directory, digest)[0]


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
    steps = {
        step: StepDetectors(
            [
                parse_latent_detector(network(f"{c}/{step_name(step)}"), trunk_sha256)
                for c in info.category_names
            ]
        )
        for step in range(info.rule.steps)
    }
    files.pop("README.md", None)
    if files:
        raise LvdError(f"bundle {directory} holds {min(files)}, which is no part of a bundle")
    return Bundle(info, found, Detectors(trunk, steps).eval().requires_grad_(False))


def _verified_files(directory: Path, digest: str | None) -> tuple[str, dict[str, bytes]]:
    """The bundle's digest and the contents of its files, each read once and checked.

    A link in the place of the directory itself is followed, once: the pointer may move meanwhile.
    """
    try:
        directory = pointed_to(directory)
        path = directory / "manifest.json"
        entries = [entry for entry in directory.rglob("*") if entry.is_symlink() or not entry.is_dir()]
        manifest = path.read_bytes()
    except OSError as error:
        raise LvdError(f"no bundle at {directory}: {error.strerror}") from None
    found = sha256(manifest)
    if digest is not None and digest != found:
        raise LvdError(f"bundle {directory} has the digest {found}, not {digest}: it is not the one you mean")
    try:
        listed = json.loads(manifest)
        expected: dict[str, str] = dict(listed["files"])
        sound = canonical(listed) == manifest and listed["format_version"] in (
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
        if sha256(files[name]) != expected[name]:
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
        origin, own = Origin.split(raw)
        own["origin"] = origin
        if not has_fields(own, BundleInfo):
            raise ValueError
        names = tuple(own["category_names"])
        rule = _parse_rule(own["rule"], len(names))
        return BundleInfo(**{**own, "rule": rule, "category_names": names})
    except (AttributeError, KeyError, LvdError, RecursionError, TypeError, ValueError):
        path = directory / "bundle.json"
        raise LvdError(f"{path} is not of a bundle version up to {BUNDLE_VERSION}") from None


def _parse_rule(raw: dict[str, Any], categories: int) -> Rule:
    if raw["kind"] == Vote.kind:
        return Vote.from_json(raw)
    if raw["kind"] == Sequential.kind:
        return Sequential.from_json(raw, categories)
    raise ValueError


def canonical(value: dict[str, Any]) -> bytes:
    """The one way to write it: any other bytes are not it."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()
