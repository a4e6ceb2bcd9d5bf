"""The bundle: a verified directory with everything that a guard runs from.

bundle.json      the rule, the categories, and what the detectors were captured from
trunk/           config.json and model.safetensors, when there are heads, or when it alone is the detector
<category>/step_07/   of a grid, config.json and model.safetensors of each detector that the rule asks
README.md        the model card: measured rates and limits
manifest.json    SHA-256 of every other file, canonical; its own SHA-256 is the bundle's digest
manifest.json.sig     a signature of manifest.json, where somebody has signed it (`lvd.guard.signature`)

How its bytes are verified is in `lvd.guard.verify`.
"""

import copy
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lvd.decide.recipe import DETECTORS
from lvd.decide.rules import Rule, Vote
from lvd.decide.sequential import Sequential
from lvd.detect.ensemble import Detectors, Ensemble, StepDetectors, UnifiedDetector
from lvd.detect.files import NetworkFiles, parse_detector, parse_trunk
from lvd.detect.network import HeadDetector, NetworkDetector, PixelDetector
from lvd.errors import LvdError
from lvd.files import has_fields, step_name
from lvd.guard.source import find_bundle
from lvd.guard.verify import BUNDLE_VERSION, VOTES_VERSION, verified_files
from lvd.sampling.origin import Origin

_log = logging.getLogger(__name__)


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
    detector: str = "grid"  # one of each category and step; unified: the trunk's own outputs

    def fields(self) -> dict[str, Any]:
        """The fields of bundle.json."""
        own = {name: value for name, value in vars(self).items() if name != "origin"}
        return {**vars(self.origin), **own, "rule": self.rule.as_json()}


@dataclass(frozen=True)
class Bundle:
    """A bundle that was verified and loaded."""

    info: BundleInfo
    digest: str
    detectors: Ensemble

    def detectors_on(self, device: torch.device) -> Ensemble:
        """A copy of the detectors on `device`; the bundle's own stay where they are."""
        return copy.deepcopy(self.detectors).to(device)


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


def load_bundle(
    source: str | Path,
    digest: str | None = None,
    *,
    revision: str | None = None,
    public_key: str | Path | None = None,
) -> Bundle:
    """Verify every byte, then load from the bytes that were verified.

    source, revision: where it is; `find_bundle` says which names are those of the Hub.
    public_key: an Ed25519 public key, its PEM file or the PEM text itself, that must have signed it.

    Raises:
        LvdError: a file was changed, added, removed or renamed, the bundle's digest is not `digest`, it is
            not signed by `public_key`, there is none, or what it holds is not a bundle.
    """
    place = find_bundle(source, revision)
    if place.on_hub and digest is None and public_key is None:
        _log.warning(
            "%s is taken as the Hub has it: give its digest, or the public key of its signer", source
        )
    directory = place.directory
    verified = verified_files(place, digest, public_key)
    files = dict(verified.files)
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
    detectors: Ensemble
    if info.detector == "unified":
        if trunk is None:
            raise LvdError(f"bundle {directory} has no trunk: export it again with evaluate.py")
        detectors = UnifiedDetector(trunk)
    else:
        steps = {
            step: StepDetectors(
                [
                    parse_latent_detector(network(f"{c}/{step_name(step)}"), trunk_sha256)
                    for c in info.category_names
                ]
            )
            for step in range(info.rule.steps)
        }
        detectors = Detectors(trunk, steps)
    files.pop("README.md", None)
    if files:
        raise LvdError(f"bundle {directory} holds {min(files)}, which is no part of a bundle")
    return Bundle(info, verified.digest, detectors.eval().requires_grad_(False))


def _parse_info(directory: Path, data: bytes) -> BundleInfo:
    try:
        raw = json.loads(data)
        if raw["format_version"] == VOTES_VERSION:
            raw["rule"] = {"kind": Vote.kind, **{key: raw.pop(key) for key in ("eta", "lam", "threshold")}}
        elif raw["format_version"] != BUNDLE_VERSION:
            raise ValueError
        origin, own = Origin.split(raw)
        own["origin"] = origin
        if not has_fields(own, BundleInfo) or own.get("detector", "grid") not in DETECTORS:
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
