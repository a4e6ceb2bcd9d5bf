"""Read a whole capture against its manifest and name what is not as it was written."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lvd.errors import LvdError
from lvd.files import file_sha256
from lvd.latents.format import CaptureInfo, no_capture, read_info, read_samples
from lvd.latents.frames import FOLDER, changed_frames
from lvd.latents.manifest import Manifest, Shard, read_manifest
from lvd.latents.reader import map_shard, read_checksums
from lvd.progress import progress


@dataclass(frozen=True)
class Finding:
    """A bad file: what is wrong with it, and the samples whose latents in it are bad or in doubt."""

    path: str  # relative to the capture
    what: str
    sample_ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        samples = f"; samples: {', '.join(self.sample_ids)}" if self.sample_ids else ""
        return f"{self.path}: {self.what}{samples}"


def verify(capture: Path) -> list[Finding]:
    """Everything that is wrong with a complete capture; nothing: []. Reads every byte of it once.

    Raises:
        LvdError: there is no such capture, it is not complete, or its manifest is unreadable.
    """
    if not capture.is_dir():
        raise LvdError(no_capture(capture))
    manifest = read_manifest(capture)
    findings = []
    if (capture / "manifest.json").read_bytes() != manifest.as_bytes():
        findings.append(Finding("manifest.json", "its content was changed"))
    findings += _described(capture, manifest)
    info, sample_ids = None, None
    try:
        info = read_info(capture)
        sample_ids = [sample.sample_id for sample in read_samples(capture)]
    except LvdError as error:
        findings.append(Finding("manifest.json", f"samples cannot be named: {error}"))
    else:
        findings += _steps(manifest, info, len(sample_ids))

    starts: dict[int, int] = {}
    with progress("verifying", len(manifest.shards), "shards") as advance:
        for shard in manifest.shards:
            start = starts.get(shard.step, 0)
            starts[shard.step] = start + shard.count
            ids = None if sample_ids is None else sample_ids[start : start + shard.count]
            findings += _shard(capture, shard, info, ids)
            advance()
    changed = "its content was changed: remove it, it is made again"
    return [*findings, *(Finding(path.as_posix(), changed) for path in changed_frames(capture))]


def refuse_damage(capture: Path, findings: Sequence[Finding]) -> None:
    """Take a capture that `verify` found nothing wrong with.

    Raises:
        LvdError: how much of it is damaged, and what to do.
    """
    if not findings:
        return
    files = len({finding.path for finding in findings})
    samples = len({sample_id for finding in findings for sample_id in finding.sample_ids})
    if all(finding.path.startswith(FOLDER) for finding in findings):
        raise LvdError(f"{files} files of decoded frames in {capture} are damaged, as listed: remove them")
    raise LvdError(
        f"capture {capture} is damaged: {files} bad files, {samples} samples in doubt, as listed; "
        "put the files back from a copy, or capture again under another name"
    )


def _described(capture: Path, manifest: Manifest) -> Iterator[Finding]:
    """What is wrong with capture.json and samples.csv."""
    for name in ("capture.json", "samples.csv"):
        if name not in manifest.files:
            yield Finding(name, "manifest.json has no digest of it, labels=FILE.csv would write one")
        elif not (capture / name).is_file():
            yield Finding(name, "is missing")
        elif file_sha256(capture / name) not in manifest.files[name]:
            yield Finding(name, "is not the file that manifest.json knows")


def _steps(manifest: Manifest, info: CaptureInfo, samples: int) -> Iterator[Finding]:
    """Steps that the manifest lists too little or too much of."""
    for step in sorted({*range(info.stored_steps), *(shard.step for shard in manifest.shards)}):
        listed = sum(shard.count for shard in manifest.shards if shard.step == step)
        expected = samples if step < info.stored_steps else 0
        if listed != expected:
            yield Finding("manifest.json", f"lists {listed} samples of step {step}, expected {expected}")


def _shard(
    capture: Path, shard: Shard, info: CaptureInfo | None, ids: Sequence[str] | None
) -> Iterator[Finding]:
    path = capture / shard.path
    if not path.is_file():
        yield Finding(shard.path, "is missing", tuple(ids or ()))
        return
    whole = path.stat().st_size == shard.bytes
    if whole and file_sha256(path) == shard.sha256:
        if info is not None and ids is not None:  # it is as it was written; is it what it should be?
            try:
                map_shard(capture, shard, info.origin.latent_shape, ids)
            except LvdError as error:
                yield Finding(shard.path, str(error).replace(str(path), "it"), tuple(ids))
        return
    what = "its content was changed" if whole else f"has {path.stat().st_size} bytes, not {shard.bytes}"
    if info is None or ids is None:
        yield Finding(shard.path, what)
        return
    try:
        bad = _changed_rows(capture, shard, info, ids)
    except LvdError:  # of its structure: no sample of it can be read
        yield Finding(shard.path, f"{what}, and it cannot be read", tuple(ids))
    else:
        where = "" if bad else ", beside the latents, which are intact"
        yield Finding(shard.path, what + where, tuple(ids[row] for row in bad))


def _changed_rows(capture: Path, shard: Shard, info: CaptureInfo, ids: Sequence[str]) -> list[int]:
    """The rows of a changed shard whose x0 is not what was written, by their checksums."""
    x0 = map_shard(capture, shard, info.origin.latent_shape, ids)
    checksums = read_checksums(capture / shard.path, shard.count)
    return [row for row, checksum in enumerate(checksums) if zlib.crc32(x0[row]) != checksum]
