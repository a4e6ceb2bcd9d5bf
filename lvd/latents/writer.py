"""Write a capture: finished batches into a journal, then the journal into per-step shards.

Contiguous HDF5 data cannot grow, and an HDF5 file killed before its flush cannot be opened. So every
finished batch becomes one safetensors file of its own, whole or absent, and a closing pass turns the
journal into shards. Killed at any moment, a capture goes on from its journal.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lvd.errors import LvdError
from lvd.latents.format import (
    CaptureInfo,
    Sample,
    Shard,
    read_info,
    read_samples,
    step_name,
    write_atomically,
    write_info,
    write_manifest,
    write_samples,
)
from lvd.latents.integrity import file_sha256
from lvd.progress import progress

SHARD_BYTES = 256 * 2**20


def is_complete(capture: Path) -> bool:
    return (capture / "manifest.json").is_file()


def begin(capture: Path, info: CaptureInfo, samples: Sequence[Sample]) -> None:
    """Start a capture, or check that the one begun under this name was made in the same way.

    Raises:
        LvdError: the name is taken by a capture with other settings or other samples.
    """
    if (capture / "capture.json").is_file():
        # Library versions and labels may differ between a capture and its continuation, nothing else.
        fixed = {name: value for name, value in vars(info).items() if name not in ("versions", "labelled")}
        check_same(capture, fixed, samples)
        return
    write_samples(capture, samples)
    write_info(capture, info)


def check_same(capture: Path, settings: dict[str, Any], samples: Sequence[Sample]) -> None:
    """Check fields of capture.json and the samples against a capture that was begun.

    Raises:
        LvdError: names the first setting or sample that differs.
    """
    begun = read_info(capture)
    for name, value in settings.items():
        if getattr(begun, name) != value:
            raise LvdError(
                f"capture {capture} exists with {name}={getattr(begun, name)!r}, not {value!r}: "
                "give the settings it was begun with, or another name"
            )
    asked = [(sample.sample_id, sample.prompt, sample.seed) for sample in samples]
    there = [(sample.sample_id, sample.prompt, sample.seed) for sample in read_samples(capture)]
    if asked != there:
        first = next(
            (f"sample {new[0]}" for new, old in zip(asked, there, strict=False) if new != old),
            f"{len(there)} samples, not {len(asked)}",
        )
        raise LvdError(
            f"capture {capture} exists with other samples (first difference: {first}): "
            "give the prompts and seed it was begun with, or another name"
        )


def journalled(capture: Path) -> set[str]:
    """The ids of the samples that are safe in the journal."""
    return {sample_id for path in _journal(capture) for sample_id in _journal_ids(path)}


def append(capture: Path, sample_ids: Sequence[str], x0: Tensor) -> None:
    """Commit one finished batch: x0 `[B, steps, C, F, H, W]` float16, all of it or nothing."""
    number = len(_journal(capture))
    data = save({"x0": x0}, metadata={"sample_ids": json.dumps(list(sample_ids))})
    write_atomically(capture / "journal" / f"batch_{number:06d}.safetensors", data)


def finish(capture: Path) -> None:
    """Turn the journal into shards, one directory a step; the manifest comes last and makes them count.

    Raises:
        LvdError: a sample of samples.csv is not in the journal.
    """
    info = read_info(capture)
    order = [sample.sample_id for sample in read_samples(capture)]
    place = {
        sample_id: (path, row)
        for path in _journal(capture)
        for row, sample_id in enumerate(_journal_ids(path))
    }
    missing = [sample_id for sample_id in order if sample_id not in place]
    if missing:
        raise LvdError(f"capture {capture} lacks {len(missing)} samples, the first is {missing[0]}")

    sample_bytes = 2 * int(np.prod(info.latent_shape))
    per_shard = max(1, SHARD_BYTES // sample_bytes)
    shards = []
    with progress("writing shards", info.steps, "steps") as advance:
        for step in range(info.steps):
            for number, start in enumerate(range(0, len(order), per_shard)):
                ids = order[start : start + per_shard]
                path = capture / step_name(step) / f"shard_{number:04d}.h5"
                _write_shard(path, ids, step, [place[sample_id] for sample_id in ids], info.latent_shape)
                shards.append(
                    Shard(
                        path=str(path.relative_to(capture)),
                        step=step,
                        count=len(ids),
                        bytes=path.stat().st_size,
                        sha256=file_sha256(path),
                    )
                )
            advance()
    write_manifest(capture, shards)
    shutil.rmtree(capture / "journal")


def _write_shard(
    path: Path,
    sample_ids: Sequence[str],
    step: int,
    places: Sequence[tuple[Path, int]],
    latent_shape: tuple[int, ...],
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    with h5py.File(partial, "w") as file:
        x0 = file.create_dataset("x0", shape=(len(places), *latent_shape), dtype="<f2")
        start = 0
        while start < len(places):  # runs of samples that one journal file holds in order
            source, row = places[start]
            count = 1
            while start + count < len(places) and places[start + count] == (source, row + count):
                count += 1
            with safe_open(source, framework="pt") as batch:
                x0[start : start + count] = batch.get_slice("x0")[row : row + count, step].numpy()
            start += count
        ids = [sample_id.encode() for sample_id in sample_ids]
        file.create_dataset("sample_id", data=np.array(ids, dtype=f"S{max(map(len, ids))}"))
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(path)


def _journal(capture: Path) -> list[Path]:
    return sorted((capture / "journal").glob("batch_*.safetensors"))


def _journal_ids(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as batch:
        ids: list[str] = json.loads(batch.metadata()["sample_ids"])
    return ids


def to_float16(x0: Tensor, where: str) -> Tensor:
    """x0 as it is stored.

    Raises:
        LvdError: a value is NaN or Inf, or too large for float16; `where` names the samples and step.
    """
    if not torch.isfinite(x0).all():
        raise LvdError(f"x0 of {where} holds NaN or Inf: the pipeline diverged, try dtype=float32")
    stored = x0.to(torch.float16)
    if not torch.isfinite(stored).all():
        raise LvdError(f"x0 of {where} reaches {x0.abs().max().item():.3g}, more than float16 holds (65504)")
    return stored
