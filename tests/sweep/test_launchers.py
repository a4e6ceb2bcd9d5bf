"""A grid of 5 x 4 jobs under each launcher: a failure and a death do not take the others with them.

SLURM gets half of it: there every job is a process that has all to import.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from conftest import FIVE
from support import slurm
from support.commands import ROOT, spoil
from support.forks import Command

pytestmark = pytest.mark.long
STEPS = "step=0..3"
SETTINGS = ["category=0..4", "name=wide", "accelerator=cpu", "threads=1", "logger=none"]
SETTINGS += ["encoder.width=16", "encoder.layers=1", "encoder.heads=2", "detector.network.epochs=25"]
BROKEN_STEP = 2
KILLED = "three/step_01"


class Sweep:
    """train.py in processes of its own, in a folder with a copy of the capture `wide`."""

    def __init__(self, folder: Path, wide: Path, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.run = folder / "runs" / "wide"
        shutil.copytree(wide / "captures", folder / "captures")
        self.environment = {
            **(environment or os.environ),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "250",
            "PYTHONPATH": str(ROOT),  # for the workers of ray and SLURM, when lvd is not installed
            "RAY_worker_niceness": "0",  # 15: they would wait for whatever else this machine does
        }

    def start(self, *arguments: str, steps: str = STEPS) -> Command:
        command = ["-m", steps, *SETTINGS, *arguments]
        return Command(ROOT / "train.py", command, self.folder, self.environment)

    def __call__(self, *arguments: str, steps: str = STEPS) -> tuple[int, str]:
        """The exit status, and what was printed."""
        return self.start(*arguments, steps=steps).wait()

    def results(self) -> dict[str, dict[str, Any]]:
        return {
            str(path.parent.relative_to(self.run)): json.loads(path.read_text())
            for path in sorted(self.run.glob("*/step_*/result.json"))
        }

    def outcome(self) -> dict[str, Any]:
        """What two sweeps must agree on: everything but the time that a job took, weights to the last bit."""
        return {
            place: (
                {key: value for key, value in result.items() if key != "seconds"},
                sha256((self.run / place / "detector" / "model.safetensors").read_bytes()).hexdigest(),
            )
            for place, result in self.results().items()
        }


@pytest.fixture(scope="module")
def uninterrupted(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of the 20 jobs, one after the other, in a process that nothing was imported for."""
    sweep = Sweep(tmp_path_factory.mktemp("uninterrupted"), wide)
    subprocess.run(
        [sys.executable, ROOT / "train.py", "-m", STEPS, *SETTINGS],
        cwd=sweep.folder,
        env=sweep.environment,
        check=True,
    )
    outcome = sweep.outcome()
    assert len(outcome) == 20
    return outcome


@pytest.fixture(scope="module")
def slurm_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    if why := slurm.missing():
        pytest.skip(why)
    with slurm.cluster(tmp_path_factory.mktemp("slurm") / "cluster") as environment:
        yield environment


@contextmanager
def killed(directory: Path) -> Iterator[list[int]]:
    """SIGKILL the process that holds a job's log open, as soon as there is one; the list has its id then."""
    log, found, over = (directory / "job.log").resolve(), [], threading.Event()

    def watch() -> None:
        while not found and not over.wait(0.01):
            for process in Path("/proc").glob("[0-9]*") if log.exists() else ():
                try:
                    held = any(link.readlink() == log for link in (process / "fd").iterdir())
                except OSError:  # it has ended meanwhile
                    continue
                if held and not found:
                    os.kill(int(process.name), signal.SIGKILL)
                    found.append(int(process.name))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("launcher", ["basic", "joblib", "ray", "submitit_slurm"])
def test_a_failure_and_a_death_among_many_jobs(
    launcher: str, wide: Path, tmp_path: Path, uninterrupted: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    arguments = [f"hydra/launcher={launcher}"]
    environment, steps, jobs = None, STEPS, set(uninterrupted)
    if launcher == "submitit_slurm":
        environment = request.getfixturevalue("slurm_environment")
        arguments += ["hydra.launcher.mem_gb=1"]
        steps, jobs = "step=1,2", {place for place in jobs if place.endswith(("step_01", "step_02"))}
    sweep = Sweep(tmp_path, wide, environment)
    shard = tmp_path / "captures" / "wide" / f"step_{BROKEN_STEP:02d}" / "shard_0000.h5"
    whole = shard.read_bytes()
    spoil(shard)
    with killed(sweep.run / KILLED) as found:
        code, printed = sweep(*arguments, steps=steps)
    assert len(found) == 1, printed

    results = sweep.results()
    failed = {f"{name}/step_{BROKEN_STEP:02d}" for name in FIVE}
    if launcher in ("ray", "submitit_slurm"):  # outlived: all the others are done
        assert code == 1, printed
        assert set(results) == jobs
        assert {place for place, r in results.items() if r["status"] == "failed"} == {*failed, KILLED}
        assert "signal 9, Killed" in results[KILLED]["error"]
        assert f"6 of {len(jobs)} jobs failed" in printed
        for place in (*failed, KILLED):
            (row,) = [line for line in printed.splitlines() if line.count(place) == 2]
            assert f"runs/wide/{place}/job.log" in row
    else:  # it ends the sweep, and the next one goes on
        assert code == (-signal.SIGKILL if launcher == "basic" else 1), printed
        assert KILLED not in results
        assert {place for place, r in results.items() if r["status"] == "failed"} <= failed
        assert (launcher == "basic") or "did not finish" in printed

    done = {place: r for place, r in results.items() if r["status"] == "done"}
    shard.write_bytes(whole)
    code, printed = sweep()
    assert code == 0, printed
    assert "20 of 20 detectors done" in printed
    assert {place: sweep.results()[place] for place in done} == done  # they did not run again
    assert sweep.outcome() == uninterrupted


def test_slurm_gets_one_array_of_the_jobs_that_are_left(
    wide: Path, tmp_path: Path, slurm_environment: dict[str, str]
) -> None:
    """7 of 20 cells are done: 13 jobs, which no product of categories and steps is."""
    sweep = Sweep(tmp_path, wide, slurm_environment)
    assert sweep("category=0", steps="step=0..3")[0] == 0
    assert sweep("category=1", steps="step=0,2,3")[0] == 0
    before, done = slurm.arrays(slurm_environment), sweep.results()
    assert len(done) == 7
    code, printed = sweep("hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=1")
    assert code == 0, printed
    assert "20 of 20 detectors done" in printed
    assert sorted((slurm.arrays(slurm_environment) - before).values()) == [13]
    assert {place: sweep.results()[place] for place in done} == done


def test_killed_ten_times_over_and_completed_it_equals_an_uninterrupted_sweep(
    wide: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    sweep, chance, done = Sweep(tmp_path, wide), random.Random(), []

    def begun() -> set[tuple[Path, int]]:
        configurations = sweep.run.glob("*/step_*/.hydra/config.yaml")  # Hydra writes it before each job
        return {(path, path.stat().st_mtime_ns) for path in configurations}

    for _ in range(10):
        before, jobs = begun(), chance.randint(1, 2)
        process = sweep.start()
        while process.code is None and len(begun() - before) < jobs:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.25))  # ten lives together must not do all 20 jobs
        assert process.code is None, process.wait()
        process.signal_group(signal.SIGKILL)
        process.wait()
        done.append(len(sweep.results()))
    print(f"results after each kill: {done}")
    assert 0 < done[-1] < 20
    code, printed = sweep()
    assert code == 0, printed
    assert sweep.outcome() == uninterrupted


@pytest.mark.parametrize(
    "launcher",
    [["basic"], ["joblib"], ["joblib", "hydra.launcher.n_jobs=1"], ["ray"]],
    ids=["basic", "joblib", "joblib in one process", "ray"],
)
def test_ctrl_c_stops_the_sweep_and_no_job_has_failed(
    launcher: list[str], wide: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    sweep = Sweep(tmp_path, wide)
    name, *options = launcher
    process = sweep.start(f"hydra/launcher={name}", *options)
    while process.code is None and len(sweep.results()) < 2:
        time.sleep(0.05)
    time.sleep(0.2)  # well into the next job's training
    process.signal_group(signal.SIGINT)  # as a terminal does
    code, printed = process.wait(60)
    assert code == 130, printed
    assert "interrupted: the same command goes on from here" in printed
    assert "Traceback" not in printed
    results = sweep.results()
    assert 2 <= len(results) < 20
    assert {result["status"] for result in results.values()} == {"done"}

    code, printed = sweep()
    assert code == 0, printed
    assert sweep.outcome() == uninterrupted
