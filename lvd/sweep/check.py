"""What can be known to go wrong with a grid before its first job: all of it, in one list."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lvd.errors import LvdError
from lvd.files import step_name
from lvd.latents import disk
from lvd.latents.format import read_samples
from lvd.latents.frames import FOLDER, FrameShape, open_frames
from lvd.latents.manifest import Shard, read_manifest
from lvd.latents.reader import CaptureReader
from lvd.sweep.results import Result

_JOB_BYTES = 256 * 1024  # result.json, logs, configuration and an offline wandb run: 130 KB were measured

_PAGE_BYTES = 2 * 5 * 2**20  # index.html with its library of figures, and the one that is about to replace it


def missing_data(capture: Path, steps: Iterable[int]) -> dict[int, str]:
    """The steps whose shards are not whole on disk, and a sentence about each."""
    samples = len(read_samples(capture))
    shards: dict[int, list[Shard]] = {}
    for shard in read_manifest(capture).shards:
        shards.setdefault(shard.step, []).append(shard)
    found = {step: _shards_problem(capture, step, shards.get(step, []), samples) for step in set(steps)}
    return {step: problem for step, problem in sorted(found.items()) if problem is not None}


def _shards_problem(capture: Path, step: int, shards: Sequence[Shard], samples: int) -> str | None:
    if sum(shard.count for shard in shards) != samples:
        held = sum(shard.count for shard in shards)
        return f"{capture / step_name(step)} holds {held} samples, samples.csv has {samples}"
    for shard in shards:
        path = capture / shard.path
        if not path.is_file():
            return f"{path} is missing: the manifest lists it"
        if path.stat().st_size != shard.bytes:
            return f"{path} has {path.stat().st_size} bytes, the manifest says {shard.bytes}"
    return None


def data_problem(missing: Mapping[int, str]) -> list[str]:
    """One sentence for all the steps that cannot be read."""
    if not missing:
        return []
    first = next(iter(missing.values()))
    others = f" (and {len(missing) - 1} more steps like this)" if len(missing) > 1 else ""
    return [f"{first}{others}"]


def weights_bytes(trunk: Path, settings: Mapping[str, Any]) -> int:
    """About how much a job's network takes on disk, by the settings of its `Identity`."""
    if settings.get("detector.tuning") == "head":
        return 0
    if "detector.tuning" in settings:  # a copy of the trunk
        return (trunk / "model.safetensors").stat().st_size
    return 4 * 12 * int(settings["encoder.layers"]) * int(settings["encoder.width"]) ** 2


def frames_problem(capture: Path, steps: Iterable[int], shape: FrameShape, *, elsewhere: bool) -> list[str]:
    """Whether the frames that these steps lack can be decoded, and kept beside the latents.

    `elsewhere`: jobs run on other machines, and the VAE may be there.
    """
    from lvd.capture.decode import load_vae

    reader = CaptureReader(capture)
    left = [step for step in sorted(set(steps)) if open_frames(reader, step, shape) is None]
    if not left:
        return []
    if (problem := disk.write_problem(capture)) is not None:
        return [problem]
    needed, free = len(left) * shape.bytes_of(len(reader.samples)), disk.free_bytes(capture)
    if needed > free:
        return [
            f"decoded frames of {len(left)} steps take {disk.size_text(needed)} below {capture}, where "
            f"{disk.size_text(free)} are free: make room, or sweep fewer steps at a time and remove "
            f"{capture / FOLDER} in between"
        ]
    if not elsewhere:
        try:
            load_vae(reader.info.origin, download=True)
        except LvdError as error:
            return [f"{error}: frames cannot be decoded"]
    return []


def disk_problem(run: Path, jobs: int, bytes_per_job: int, *, page: bool) -> list[str]:
    """Whether the disk takes `jobs` more jobs, each with weights of `bytes_per_job`, and the sweep's page."""
    if (problem := disk.write_problem(run)) is not None:
        return [problem]
    needed, free = jobs * (bytes_per_job + _JOB_BYTES) + page * _PAGE_BYTES, disk.free_bytes(run)
    if needed <= free:
        return []
    return [
        f"{jobs} jobs write about {needed / 2**20:.0f} MB below {run}, where {free / 2**20:.0f} MB are free"
    ]


def other_configuration(
    run: Path, results: Iterable[Result | None], settings: Mapping[str, Any]
) -> list[str]:
    """Whether the run's name was used with other settings before.

    Only what a person chose counts: jobs that are done on another trunk or on other labels just run again.
    """
    differing = [
        (key, result.settings[key])
        for result in results
        if result is not None and result.status == "done"
        for key in result.settings
        if key in settings and result.settings[key] != settings[key]
    ]
    if not differing:
        return []
    changes = dict(differing)
    told = ", ".join(f"{key}={value} and not {settings[key]}" for key, value in sorted(changes.items()))
    return [
        f"{run} was trained with {told}: give this configuration another name=, "
        "or force=true to train these jobs again"
    ]


def refuse(problems: Iterable[str]) -> None:
    """Raise one error of all problems; none: nothing happens.

    Raises:
        LvdError: lists the problems.
    """
    listed = list(dict.fromkeys(problems))
    if listed:
        raise LvdError("; ".join(listed))
