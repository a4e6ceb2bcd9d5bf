"""Write a capture: its description, then the journal of finished batches turned into per-step shards.

Contiguous HDF5 data cannot grow, and an HDF5 file killed before its flush cannot be opened. So finished
batches go to a journal, and a closing pass makes shards of it, step by step. Killed at any moment, a capture
goes on from what it has.
"""

import shutil
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from lvd.errors import LvdError
from lvd.files import (
    atomic_file,
    file_sha256,
    read_json,
    remove_partial_files,
    sha256,
    step_name,
    sync_directory,
    write_atomically,
    write_json,
)
from lvd.latents import disk
from lvd.latents.format import (
    CaptureInfo,
    Sample,
    info_json,
    read_info,
    read_samples,
    samples_csv,
    write_info,
    write_samples,
)
from lvd.latents.journal import Batch, batches
from lvd.latents.lock import exclusive
from lvd.latents.manifest import Manifest, Shard, read_manifest, write_manifest
from lvd.progress import progress

SHARD_BYTES = 256 * 2**20


def is_complete(capture: Path) -> bool:
    return (capture / "manifest.json").is_file()


def refuse_missing_shards(capture: Path) -> None:
    """Refuse a complete capture of which shards are gone or cut; their content is for `verify` to read.

    Raises:
        LvdError: names the first.
    """
    for shard in read_manifest(capture).shards:
        path = capture / shard.path
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise LvdError(
                f"{path} is gone or not whole: put it back from a copy, or capture again under another name; "
                f"capture.py name={capture.name} verify=true lists all that is damaged"
            )


def begin(capture: Path, info: CaptureInfo, samples: Sequence[Sample]) -> None:
    """Start a capture, or check that the one begun under this name was made in the same way.

    Raises:
        LvdError: the name is taken by a capture with other settings or other samples.
    """
    if (capture / "capture.json").is_file():
        # Library versions may differ between a capture and its continuation, nothing else.
        # Whether the layout was given by hand, and the noise levels, follow from the others, and captures
        # from before do not say.
        free = ("versions", "layout_given", "noise_levels")
        fixed = {name: value for name, value in info.fields().items() if name not in free}
        check_same(capture, fixed, samples)
        return
    write_samples(capture, samples)
    write_info(capture, info)


def check_same(capture: Path, settings: dict[str, Any], samples: Sequence[Sample]) -> None:
    """Check fields of capture.json and the samples against a capture that was begun.

    Raises:
        LvdError: names the first setting or sample that differs.
    """
    begun = read_info(capture).fields()
    for name, value in settings.items():
        if begun[name] != value:
            raise LvdError(
                f"capture {capture} exists with {name}={begun[name]!r}, not {value!r}: "
                "give the settings it was begun with, or another name"
            )
    asked = [_made_from(sample) for sample in samples]
    there = [_made_from(sample) for sample in read_samples(capture)]
    if asked != there:
        first = next(
            (f"sample {new[0]}" for new, old in zip(asked, there, strict=False) if new != old),
            f"{len(there)} samples, not {len(asked)}",
        )
        raise LvdError(
            f"capture {capture} exists with other samples (first difference: {first}): "
            "give the prompts and seed it was begun with, or another name"
        )


def relabel(capture: Path, samples: Sequence[Sample]) -> None:
    """Replace samples.csv, whose labels changed, and capture.json, where it is of an earlier version.

    Killed at any moment, the capture agrees with its manifest, which knows both versions meanwhile, and the
    same command puts the rest right: the labels count from when samples.csv has them. It says of every sample
    what its label is, and so means the same beside either capture.json.

    Raises:
        LvdError: another process writes the capture, or the files are not those that the manifest knows.
    """
    with disk.translate_errors(capture), exclusive(capture):
        contents = {"samples.csv": samples_csv(samples), "capture.json": info_json(read_info(capture))}
        after = {name: [sha256(content)] for name, content in contents.items()}
        manifest = read_manifest(capture) if is_complete(capture) else None
        if manifest is not None:
            before = _digests(capture)
            for name, known in manifest.files.items():
                if not set(before.get(name, [])) <= set(known):
                    raise LvdError(f"{capture / name} is not the file that manifest.json knows: put it back")
            either = {name: [*before[name], *after[name]] for name in after}
            write_manifest(capture, replace(manifest, files=either))
        for name, content in contents.items():
            write_atomically(capture / name, content)
        if manifest is not None:
            write_manifest(capture, replace(manifest, files=after))


def finish(capture: Path) -> None:
    """Turn the journal into shards, one directory a step; the manifest comes last and makes them count.

    A step's part of the journal is removed when its shards are there: so much room is needed at a time.

    Raises:
        LvdError: a sample of samples.csv is not in the journal, or there is no room for a step's shards.
    """
    if is_complete(capture):  # killed when only the tidying was left
        _tidy(capture)
        return
    info = read_info(capture)
    order = [sample.sample_id for sample in read_samples(capture)]
    journal = batches(capture)
    places = {sample_id: (batch, row) for batch in journal for row, sample_id in enumerate(batch.sample_ids)}
    missing = [sample_id for sample_id in order if sample_id not in places]
    if missing:
        raise LvdError(f"capture {capture} lacks {len(missing)} samples, the first is {missing[0]}")

    shards = committed_shards(capture)
    with (
        progress("writing shards", info.stored_steps, "steps") as advance,
        disk.translate_errors(capture),
    ):
        for step in range(info.stored_steps):
            if all(shard.step != step for shard in shards):
                shards += _write_step(capture, info, step, order, [places[sample_id] for sample_id in order])
                write_json(capture / "journal" / "shards.json", {"shards": [asdict(s) for s in shards]})
                sync_directory(capture / "journal")
            for batch in journal:
                batch.discard(step)
            advance()
        write_manifest(capture, Manifest(shards, _digests(capture)))
        sync_directory(capture)
    _tidy(capture)


def _write_step(
    capture: Path, info: CaptureInfo, step: int, order: Sequence[str], places: Sequence[tuple[Batch, int]]
) -> list[Shard]:
    remove_partial_files(capture / step_name(step))  # of a closing pass that was killed: they take room
    sample_bytes = 2 * int(np.prod(info.origin.latent_shape))
    disk.need(
        capture,
        len(order) * (sample_bytes + 8 + max(len(sample_id.encode()) for sample_id in order)) + 2**16,
        f"closing capture {capture}, a step at a time,",
    )
    per_shard = max(1, SHARD_BYTES // sample_bytes)
    shards = []
    for number, start in enumerate(range(0, len(order), per_shard)):
        here = slice(start, start + per_shard)
        path = capture / step_name(step) / f"shard_{number:04d}.h5"
        _write_shard(path, order[here], step, places[here], info.origin.latent_shape)
        shards.append(
            Shard(
                path=str(path.relative_to(capture)),
                step=step,
                count=len(order[here]),
                bytes=path.stat().st_size,
                sha256=file_sha256(path),
            )
        )
    sync_directory(capture / step_name(step))
    return shards


def _write_shard(
    path: Path,
    sample_ids: Sequence[str],
    step: int,
    places: Sequence[tuple[Batch, int]],
    latent_shape: tuple[int, ...],
) -> None:
    with atomic_file(path) as partial, h5py.File(partial, "w") as file:
        x0 = file.create_dataset("x0", shape=(len(places), *latent_shape), dtype="<f2")
        checksums = []
        for start, count in _runs(places):
            batch, row = places[start]
            rows = batch.rows(step, row, count)
            x0[start : start + count] = rows
            checksums += [zlib.crc32(sample) for sample in rows]
        ids = [sample_id.encode() for sample_id in sample_ids]
        file.create_dataset("sample_id", data=np.array(ids, dtype=f"S{max(map(len, ids))}"))
        file.create_dataset("crc32", data=np.array(checksums, dtype="<u4"))


def _runs(places: Sequence[tuple[Batch, int]]) -> list[tuple[int, int]]:
    """Where runs of samples start that one batch holds in order, and how long they are."""
    starts = [
        place
        for place, (batch, row) in enumerate(places)
        if place == 0 or (places[place - 1][0] is not batch or places[place - 1][1] + 1 != row)
    ]
    return [(start, end - start) for start, end in zip(starts, [*starts[1:], len(places)], strict=True)]


def committed_shards(capture: Path) -> list[Shard]:
    """The shards of whole steps that a closing pass had written when it was interrupted.

    Raises:
        LvdError: the list of them is unreadable.
    """
    path = capture / "journal" / "shards.json"
    if not path.is_file():
        return []
    try:
        return [Shard.parse(shard) for shard in read_json(path, missing=f"{path} is missing")["shards"]]
    except (KeyError, TypeError, ValueError):
        raise LvdError(f"{path} is not readable: begin the capture again under another name") from None


def _digests(capture: Path) -> dict[str, list[str]]:
    return {name: [file_sha256(capture / name)] for name in ("capture.json", "samples.csv")}


def _tidy(capture: Path) -> None:
    """Remove what killed processes left half-written, and then the journal, which says that this is to do."""
    for directory in (capture, *capture.glob("step_*")):
        remove_partial_files(directory)
    shutil.rmtree(capture / "journal", ignore_errors=True)


def to_float16(x0: Tensor, where: str) -> Tensor:
    """A copy of x0 as it is stored, on the CPU.

    Raises:
        LvdError: a value is NaN or Inf, or too large for float16; `where` names the samples and step.
    """
    bounds = torch.stack(torch.aminmax(x0)).cpu()  # one pass; NaN is passed on
    if not torch.isfinite(bounds).all():
        raise LvdError(f"x0 of {where} holds NaN or Inf: the pipeline diverged, try dtype=float32")
    if not torch.isfinite(bounds.half()).all():
        raise LvdError(
            f"x0 of {where} reaches {bounds.abs().max().item():.3g}, more than float16 holds (65504)"
        )
    return x0.to("cpu", torch.float16, copy=True)


def _made_from(sample: Sample) -> tuple[str, str, int, str, str]:
    return sample.sample_id, sample.prompt, sample.seed, sample.image, sample.video
