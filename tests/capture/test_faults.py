"""Captures that are killed and disks that are full: nothing is half there, and the same command goes on."""

import csv
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from test_capture import PROMPTS, everything_in

from conftest import capture_info, latents_of, make_samples
from lvd.errors import LvdError
from lvd.files import file_sha256, step_name
from lvd.latents import disk, journal, writer
from lvd.latents.disk import free_bytes
from lvd.latents.reader import CaptureReader
from lvd.latents.verify import verify
from support import tiny
from support.commands import Shell
from support.forks import Command

ROOT = Path(__file__).parents[2]
STEPS, VIDEOS = 4, 12
KILLS = 50


def arguments(pipeline: Path, name: str, *more: str) -> list[str]:
    return [
        *(*tiny.SETTINGS, f"pipeline.path={pipeline}", f"pipeline.steps={STEPS}"),
        "pipeline.guidance=1",  # one pass of the network a step
        *("prompts=prompts.csv", "batch_size=2", f"name={name}", *more),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with (tmp_path / "prompts.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "categories"])
        rows.writerows([PROMPTS[i % 6], ("gore" if i % 2 else "")] for i in range(VIDEOS))
    return tmp_path


def check_what_counts(capture: Path) -> set[str]:
    """Whatever is committed is whole and readable; returns whose samples they are."""
    if writer.is_complete(capture):
        assert verify(capture) == []
        return {sample.sample_id for sample in CaptureReader(capture).samples}
    shards = writer.committed_shards(capture)
    for shard in shards:
        assert file_sha256(capture / shard.path) == shard.sha256
    ids: set[str] = set()
    for batch in journal.batches(capture):
        for step in set(range(STEPS)) - {shard.step for shard in shards}:
            with safe_open(batch.directory / f"{step_name(step)}.safetensors", framework="np") as file:
                x0 = file.get_tensor("x0")
            assert x0.shape == (len(batch.sample_ids), 4, 8, 8, 8)
        assert not ids & set(batch.sample_ids)
        ids |= set(batch.sample_ids)
    assert len(list(capture.glob("journal/*.tmp"))) <= 1  # the batch in flight
    return ids


def written(capture: Path, since: float) -> set[str]:
    """The files that this life of a capture has written: names of step files, of shards, and the others'."""
    found = set()
    for folder, _, names in os.walk(capture):
        for path in (Path(folder, name) for name in names):
            with suppress(FileNotFoundError):  # renamed or removed meanwhile
                if path.stat().st_mtime >= since:
                    found.add(str(path.relative_to(capture)).replace(".tmp", ""))
    return found


@pytest.mark.long
def test_fifty_kills_lose_at_most_the_batch_in_flight_and_change_no_bit(
    folder: Path, tiny_pipeline_path: Path
) -> None:
    """Killed after so many files of a life, from its start to two batches on, whatever the machine's speed.

    Every fifth life goes on to the closing pass, and ends there.
    """

    def start(name: str) -> Command:
        return Command(ROOT / "capture.py", arguments(tiny_pipeline_path, name), folder)

    code, output = start("whole").wait()
    assert code == 0, output
    whole = everything_in(folder / "captures" / "whole")

    rng = random.Random(0)
    kills, captures, stages = 0, 0, {"before a batch": 0, "journal": 0, "closing": 0, "complete": 0}
    in_flight = set[int]()  # how many of its steps the batch had that was lost
    capture, there = folder / "captures" / "mine", set[str]()
    while kills < KILLS:
        began, files = time.time(), rng.randint(0, 2 * STEPS)
        process = start("mine")
        if kills % 5 == 4:
            while process.code is None and "journal/shards.json" not in written(capture, began):
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.02))
        elif files:
            while process.code is None and len(written(capture, began)) < files:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.1))
        else:
            time.sleep(rng.uniform(0, 1))
        process.kill()
        code, output = process.wait()
        assert code in (0, -signal.SIGKILL), output
        kills += code != 0
        now = check_what_counts(capture) if capture.exists() else set[str]()
        assert there <= now  # what was committed stays
        there = now
        in_flight |= {len(list(lost.iterdir())) for lost in capture.glob("journal/batch_*.tmp")}
        if writer.is_complete(capture):
            stages["complete"] += 1
        elif writer.committed_shards(capture):
            stages["closing"] += 1
        else:
            stages["journal" if there else "before a batch"] += 1
        if writer.is_complete(capture):  # the same command tidies up, if that was left; then begin anew
            if (capture / "journal").exists():
                code, output = start("mine").wait()
                assert code == 0, output
            (capture / ".lock").unlink(missing_ok=True)  # a file that a killed process left locks nothing
            assert everything_in(capture) == whole
            captures += 1
            shutil.rmtree(capture)
            there = set()
    if capture.exists():
        code, output = start("mine").wait()
        assert code == 0, output
        assert everything_in(capture) == whole
    print(f"{kills} kills, {captures} captures made whole again; found in: {stages}; lost: {in_flight} steps")
    assert captures >= 1
    assert stages["journal"] >= 5
    assert stages["closing"] >= 5
    assert in_flight >= set(range(1, STEPS))


def test_tidying_that_is_killed_is_done_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal goes last: a complete capture without one is not looked at again."""
    samples, capture = make_samples(4), tmp_path / "mine"
    writer.begin(capture, capture_info(), samples)
    journal.append(capture, [sample.sample_id for sample in samples], latents_of(samples))
    for left in (".samples.csv.0.tmp", "journal/.shards.json.0.tmp"):  # of lives that were killed
        (capture / left).touch()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.finish(capture)
    assert (capture / "journal").exists()
    assert not list(capture.glob(".*"))
    writer.finish(capture)
    assert {path.name for path in capture.iterdir() if path.is_file()} == {
        *("manifest.json", "capture.json", "samples.csv"),
    }
    assert not (capture / "journal").exists()


# Full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "lvd-test", str(directory)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def leave(disk: Path, size: int) -> None:
    """Fill the disk but for `size` bytes."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    ballast.write_bytes(b"x" * (free_bytes(disk) - size))


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell("capture.py", folder, monkeypatch, capfd)


FULL = "make room and run the same command again, it goes on where it stopped"


@pytest.mark.long
def test_a_capture_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    command: Shell, small_disk: Path, tiny_pipeline_path: Path
) -> None:
    """12 videos are 192 KiB of x0, 48 KiB a step."""
    capture = small_disk / "mine"
    asked = arguments(tiny_pipeline_path, "mine", f"captures={small_disk}")
    there: list[int] = []
    for room in (2**12, 2**16, 2**17):
        leave(small_disk, room)
        ran = command(*asked)
        assert ran.code == 1
        assert ran.err.splitlines()[-1].startswith(f"error: the disk of {capture} is full (")
        assert ran.err.splitlines()[-1].endswith(FULL)
        assert "Traceback" not in ran.err
        there.append(len(check_what_counts(capture)) if capture.exists() else 0)
        assert not list(capture.glob("journal/*.tmp"))
    assert there[0] < there[1] < there[2] < VIDEOS

    leave(small_disk, 200_000)  # for the batches that are left, not for shards
    ran = command(*asked)
    assert ran.code == 1
    assert "closing capture" in ran.err
    assert len(check_what_counts(capture)) == VIDEOS
    (small_disk / "ballast").unlink()
    ran = command(*asked)
    assert ran.code == 0, ran.err
    assert command(*arguments(tiny_pipeline_path, "whole")).code == 0
    assert everything_in(capture) == everything_in(command.directory / "captures" / "whole")


def test_a_disk_that_fills_up_while_a_shard_is_written_is_a_sentence_too(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = make_samples(100)  # 200 KiB a step
    capture = small_disk / "mine"
    writer.begin(capture, capture_info(), samples)
    journal.append(capture, [s.sample_id for s in samples], latents_of(samples))
    leave(small_disk, 2**16)
    with pytest.raises(
        LvdError, match=r"closing capture .*, a step at a time, needs 272 kB of room, .* has 65.5 kB"
    ):
        writer.finish(capture)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "need", lambda *_: None)  # another process takes the room after it was asked for
        with pytest.raises(LvdError, match=f"is full .*{FULL}"):
            writer.finish(capture)
    assert not list(capture.glob("step_*/*"))
    (small_disk / "ballast").unlink()
    writer.finish(capture)
    assert verify(capture) == []


def test_closing_needs_the_room_of_one_step_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on disk while the journal becomes shards: never more than the journal and one step."""
    samples = make_samples(100)
    capture = tmp_path / "mine"
    writer.begin(capture, capture_info(), samples)
    for start in range(0, 100, 10):
        batch = samples[start : start + 10]
        journal.append(capture, [s.sample_id for s in batch], latents_of(batch))
    before, sizes = size_of(capture), []
    write_json = writer.write_json

    def measured(path: Path, value: Any) -> None:
        sizes.append(size_of(capture))
        write_json(path, value)

    monkeypatch.setattr(writer, "write_json", measured)
    writer.finish(capture)
    one_step = 100 * 2048
    assert len(sizes) == 3
    assert max(sizes) < before + 1.1 * one_step
    assert size_of(capture) < before + 0.1 * one_step


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
