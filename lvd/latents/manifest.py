"""manifest.json: the shards that a capture consists of. A capture without one is not complete."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lvd.errors import LvdError
from lvd.files import json_bytes, read_json, step_name, write_atomically
from lvd.latents.format import no_capture

MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Shard:
    """One line of the manifest. A shard counts only when it is listed there."""

    path: str  # relative to the capture
    step: int
    count: int
    bytes: int
    sha256: str

    @classmethod
    def parse(cls, raw: Any) -> "Shard":
        """Raises: TypeError or ValueError, when `raw` is not a shard below the capture's own directory."""
        shard = cls(**raw)
        numbers = (shard.step, shard.count, shard.bytes)
        if any(type(number) is not int or number < 0 for number in numbers) or shard.count == 0:
            raise ValueError
        if not re.fullmatch(rf"{step_name(shard.step)}/shard_\d{{4,}}\.h5", shard.path):
            raise ValueError
        if not re.fullmatch("[0-9a-f]{64}", shard.sha256):
            raise ValueError
        return shard


@dataclass(frozen=True)
class Manifest:
    """manifest.json: what a complete capture consists of.

    `files` has the SHA-256 that capture.json and samples.csv may have: one each, and two only while labels
    are being changed. A manifest of before there were any has none.
    """

    shards: list[Shard]
    files: dict[str, list[str]] = field(default_factory=dict)

    def as_bytes(self) -> bytes:
        """The file's content, the same for the same manifest."""
        return json_bytes(
            {
                "format_version": MANIFEST_VERSION,
                **({"files": self.files} if self.files else {}),
                "shards": [asdict(shard) for shard in self.shards],
            }
        )


def read_manifest(capture: Path) -> Manifest:
    """Read manifest.json, which a capture has from the moment it is complete.

    Raises:
        LvdError: the capture is not complete.
    """
    path = capture / "manifest.json"
    begun = (capture / "capture.json").is_file()
    raw = read_json(
        path,
        missing=f"capture {capture} is not complete: run capture.py again to go on with it"
        if begun
        else no_capture(capture),
    )
    try:
        if raw["format_version"] != MANIFEST_VERSION or not isinstance(raw["shards"], list):
            raise TypeError
        files = {
            str(name): [str(digest) for digest in digests] for name, digests in raw.get("files", {}).items()
        }
        return Manifest([Shard.parse(shard) for shard in raw["shards"]], files)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise LvdError(f"{path} is not a manifest.json of format version {MANIFEST_VERSION}") from None


def write_manifest(capture: Path, manifest: Manifest) -> None:
    write_atomically(capture / "manifest.json", manifest.as_bytes())
