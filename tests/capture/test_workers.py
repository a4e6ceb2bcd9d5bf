"""One capture made by several workers, or of the first steps only: the same latents as one process makes."""

import fcntl
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_capture import everything_in, latents, write_prompts

from conftest import capture_info, write_capture
from lvd.decide.metrics import summarise
from lvd.decide.recipe import EvaluationRecipe
from lvd.decide.rules import Vote
from lvd.errors import LvdError
from lvd.evaluation.run import evaluate_runs
from lvd.guard.bundle import load_bundle
from lvd.latents import journal, lock, writer
from lvd.latents.format import read_info
from lvd.latents.reader import CaptureReader
from lvd.latents.verify import verify
from support import tiny
from support.commands import Shell

VIDEOS = 5


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    write_prompts(tmp_path / "prompts.csv", VIDEOS)
    return Shell("capture.py", tmp_path, monkeypatch, capfd)


@pytest.fixture
def settings(tiny_pipeline_path: Path) -> Callable[..., list[str]]:
    def make(name: str) -> list[str]:
        return [
            *(*tiny.SETTINGS, f"pipeline.path={tiny_pipeline_path}", "pipeline.steps=3"),
            *("prompts=prompts.csv", "batch_size=2", f"name={name}"),
        ]

    return make


Settings = Callable[[str], list[str]]


def test_workers_make_what_one_process_makes(command: Shell, settings: Settings) -> None:
    """5 videos in batches of 2: two workers have two of them, the third has one."""
    assert command(*settings("one")).code == 0
    ran = command("-m", "worker=0..2", "workers=3", *settings("many"))
    assert ran.code == 0, ran.err
    assert "1 of 5 samples are left: the last worker closes the capture" in ran.out
    one, many = (command.directory / "captures" / name for name in ("one", "many"))
    shutil.rmtree(many / "workers")  # of Hydra
    assert everything_in(many) == everything_in(one)
    assert verify(many) == []


def test_a_worker_that_never_came_is_made_up_for_by_the_plain_command(
    command: Shell, settings: Settings
) -> None:
    assert command("worker=1", "workers=2", *settings("mine")).code == 0
    capture = command.directory / "captures" / "mine"
    assert journal.journalled(capture) == {"0002", "0003"}
    assert [path.name for path in (capture / "journal").iterdir()] == ["batch_worker1_000000"]
    ran = command(*settings("mine"))
    assert "2 of 5 samples are there" in ran.out
    assert command(*settings("one")).code == 0
    assert everything_in(capture) == everything_in(command.directory / "captures" / "one")
    again = command("worker=1", "workers=2", *settings("mine"))
    assert (again.code, "is complete: 5 samples, nothing to do" in again.out) == (0, True)


def test_a_worker_that_fails_does_not_take_the_others_with_it(command: Shell, settings: Settings) -> None:
    capture = command.directory / "captures" / "mine"
    with lock.shared_by_worker(capture, 0):  # another process is worker 0
        ran = command("-m", "worker=0,1", "workers=2", *settings("mine"))
    assert ran.code == 1
    assert (
        "error: another process is writing capture captures/mine as worker 0: wait until it ends" in ran.err
    )
    assert "Traceback" not in ran.err
    assert journal.journalled(capture) == {"0002", "0003"}
    assert not writer.is_complete(capture)


# Locks


def test_two_captures_of_one_name_at_once_are_refused(command: Shell, settings: Settings) -> None:
    capture = command.directory / "captures" / "mine"
    with lock.exclusive(capture):
        before = everything_in(capture)
        ran = command(*settings("mine"))
        assert everything_in(capture) == before
    assert ran.code == 1
    assert ran.err.splitlines()[-1] == (
        "error: another process is writing capture captures/mine: wait until it ends"
    )
    assert not capture.exists()


def test_a_lock_file_that_a_killed_process_left_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".lock").touch()
    with lock.exclusive(tmp_path / "mine"):
        assert (tmp_path / "mine" / ".lock").exists()
    assert not (tmp_path / "mine").exists()


def test_workers_hold_the_capture_together_and_only_the_last_has_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_PATIENCE_SECONDS", 0.0)
    capture = tmp_path / "mine"
    with lock.shared_by_worker(capture, 0), lock.shared_by_worker(capture, 1):
        with pytest.raises(LvdError, match="is writing capture"), lock.exclusive(capture):
            pass
        with lock.exclusive_if_last(capture) as last:
            assert not last
    with lock.exclusive_if_last(capture) as last:
        assert last
        with pytest.raises(LvdError, match="is writing capture"), lock.shared_by_worker(capture, 1):
            pass
    assert not capture.exists()


def test_a_lock_is_taken_anew_when_its_file_is_removed_while_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is opened, removed by the process that held it, and only then locked: it locks nothing."""
    flock, calls = fcntl.flock, []

    def remove_first(descriptor: int, kind: int) -> None:
        if not calls:
            (tmp_path / "mine" / ".lock").unlink()
        calls.append(descriptor)
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with lock.exclusive(tmp_path / "mine"):
        assert (tmp_path / "mine" / ".lock").is_file()
    assert len(calls) == 3


# Only the first steps


def test_the_first_steps_are_those_of_a_whole_capture(command: Shell, settings: Settings) -> None:
    assert command(*settings("all")).code == 0
    ran = command("steps=0..1", *settings("first"))
    assert ran.code == 0, ran.err
    assert "steps 0..1 of the sampler's 3" in " ".join(ran.out.split())
    whole, first = (command.directory / "captures" / name for name in ("all", "first"))
    assert (read_info(first).origin.steps, read_info(first).recorded_steps) == (3, 2)
    assert read_info(whole).recorded_steps is None
    for step in range(2):
        both = [CaptureReader(capture).step(step).read(range(VIDEOS)) for capture in (whole, first)]
        assert np.array_equal(*(x0.view(np.uint16) for x0 in both))
    with pytest.raises(LvdError, match=r"has no step 2: it has 0..1 of the sampler's 3"):
        CaptureReader(first).step(2)
    assert verify(first) == []
    other = command("steps=0..0", *settings("first"))
    assert "exists with recorded_steps=2, not 1" in other.err
    assert latents(whole).shape[0] == 3
    same = command("steps=0..2", *settings("all"))  # all of them
    assert "is complete: 5 samples, nothing to do" in same.out


@pytest.fixture
def first_steps(tmp_path: Path) -> Path:
    """captures/tiny with the first 3 of 10 steps."""
    return write_capture(tmp_path / "captures" / "tiny", 40, steps=10, recorded_steps=3)


def test_a_job_for_a_step_that_was_not_recorded_is_refused(
    first_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    train = Shell("train.py", tmp_path, monkeypatch, capfd)
    ran = train("-m", "category=0,1", "step=0..3", "name=tiny", "logger=none")
    assert ran.code == 1
    assert "error: the capture has no step 3: it has 0..2 of the sampler's 10" in ran.err


@pytest.mark.long
def test_a_run_on_the_first_steps_is_trained_measured_and_guards(
    first_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    train = Shell("train.py", tmp_path, monkeypatch, capfd)
    small = ["accelerator=cpu", "encoder.width=16", "encoder.layers=1", "encoder.heads=2", "logger=none"]
    trunk = train("task=trunk", "name=tiny", "trunk.batches=4", "trunk.fit.epochs=1", *small)
    assert trunk.code == 0, trunk.err
    heads = train("-m", "category=0,1", "step=0..2", "name=tiny", "detector.head.epochs=1", *small)
    assert heads.code == 0, heads.err
    run, recipe = tmp_path / "runs" / "tiny", EvaluationRecipe(eta=4, examples=0)
    with pytest.raises(LvdError, match="eta=4 is more than the 3 steps that are in"):
        evaluate_runs(first_steps, [run], recipe)
    (measured,), _ = evaluate_runs(first_steps, [run], replace(recipe, eta=3))
    assert measured.bundle is not None
    assert load_bundle(run / "bundle", measured.bundle).info.origin.steps == 10


def test_what_is_saved_counts_the_samplers_steps() -> None:
    scores = np.array([[[0.9], [0.9]], [[0.1], [0.1]]])  # one sample caught at its first step
    vote = Vote(2, 0.5, 0.5)
    unsafe = np.array([[True], [False]])
    assert summarise(vote, scores, unsafe, ("alpha",)).compute_saved == 1 - (1 + 2) / 4
    assert summarise(vote, scores, unsafe, ("alpha",), sampler_steps=10).compute_saved == 1 - (1 + 10) / 20


def test_a_capture_json_without_the_field_has_all_steps(tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "tiny", 8)
    path = capture / "capture.json"
    text = path.read_text()
    path.write_text(text.replace(',\n  "recorded_steps": null', ""))
    assert path.read_text() != text
    assert read_info(capture) == capture_info()
    assert read_info(capture).stored_steps == 3
