"""Write the bundle of a trained run, all of it or nothing."""

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from lvd.detect.files import NetworkFiles
from lvd.errors import LvdError
from lvd.files import sha256, step_name, sync_directory, write_atomically
from lvd.guard.bundle import BundleInfo, parse_latent_detector
from lvd.guard.model_card import model_card
from lvd.guard.pointer import MANIFEST, bundle_directory, move_old_bundle, point_to
from lvd.guard.verify import BUNDLE_VERSION, canonical, verify_bundle


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
    manifest = canonical(
        {
            "format_version": BUNDLE_VERSION,
            "files": {name: sha256(data) for name, data in files.items()},
        }
    )
    digest = sha256(manifest)
    directory = bundle_directory(pointer, digest)
    directory.parent.mkdir(parents=True, exist_ok=True)
    move_old_bundle(pointer)
    if not directory.exists():
        _write_directory(directory, {**files, MANIFEST: manifest})
    try:
        verify_bundle(directory, digest)
    except LvdError as error:
        raise LvdError(f"{error}; move {directory} away, and evaluate again") from None
    point_to(pointer, directory)
    return digest


def _bundle_files(run: Path, info: BundleInfo, written: Mapping[str, str]) -> dict[str, bytes]:
    """The contents of a bundle, without its manifest."""

    def network(directory: Path) -> NetworkFiles:
        network = NetworkFiles.read(directory)
        for name, data in _as_files(directory.relative_to(run).as_posix(), network).items():
            if name in written and sha256(data) != written[name]:
                raise LvdError(f"{run / name} is not the file that its job wrote: evaluate again")
        return network

    files = {
        "bundle.json": canonical(info.fields()),
        "README.md": model_card(info).encode(),
    }
    trunk_sha256 = None
    if (run / "trunk" / "model.safetensors").is_file():
        trunk = network(run / "trunk")
        trunk_sha256 = trunk.weights_sha256
        files |= _as_files("trunk", trunk)
    if info.detector == "unified":
        return files
    for step in range(info.rule.steps):
        for category in info.category_names:
            detector = network(run / category / step_name(step) / "detector")
            parse_latent_detector(detector, trunk_sha256)
            files |= _as_files(f"{category}/{step_name(step)}", detector)
    return files


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


def _as_files(name: str, network: NetworkFiles) -> dict[str, bytes]:
    return {f"{name}/config.json": network.config, f"{name}/model.safetensors": network.weights}
