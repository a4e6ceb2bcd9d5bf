import json
import shutil
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins

from conftest import FIVE, NAMES, STEPS
from lvd.axes import Axis, expanded, read_axes
from lvd.detect.fit import check_machine
from lvd.detect.recipe import Machine
from lvd.errors import LvdError
from lvd.latents.format import UNLABELLED, read_samples, write_samples
from lvd.sweep.grid import AXES, Cell, resolve_cells
from lvd.sweep.job import cell_seed
from support.commands import Ran, Shell, spoil, wandb_records

GRID = ["-m", "category=0..4", "step=0..49"]
TINY = [
    "name=tiny",
    "accelerator=cpu",
    "encoder.width=16",
    "encoder.layers=1",
    "encoder.heads=2",
    "detector.network.epochs=1",
    "detector.network.shift=0",
]


# ---- how axes are written

ZERO_TO_49 = [str(step) for step in range(50)]


@pytest.mark.parametrize(
    ("given", "expanded"),
    [
        ("step=0..49", ZERO_TO_49),
        ("step=range(50)", ZERO_TO_49),
        ("step=range(0,3),4", ["0", "1", "2", "4"]),
        ("step=range(0, 10, 4)", ["0", "4", "8"]),
        ("step=range(3,0,-1)", ["3", "2", "1"]),
        ("step=0,3,7", ["0", "3", "7"]),
        ("step= 0 , 3", ["0", "3"]),
        ("step=0..2,4", ["0", "1", "2", "4"]),
        ("step=7..7", ["7"]),
        ("step=5", ["5"]),
        ("category=0..4", ["0", "1", "2", "3", "4"]),
        ("category=terrifying", ["terrifying"]),
        ("category=violent_bloody,0..1,range(3,5)", ["violent_bloody", "0", "1", "3", "4"]),
    ],
)
def test_every_spelling_becomes_a_plain_list(given: str, expanded: list[str]) -> None:
    axis = Axis.parse(given)
    assert axis.values() == expanded
    assert (len(axis), axis.first) == (len(expanded), expanded[0])


@pytest.mark.parametrize(
    "given",
    [
        "step=",
        "step=,",
        "step=0,,3",
        "step=0..",
        "step=..3",
        "step=0...3",
        "step=-1..3",
        "step=4..0",
        "step=range(0)",
        "step=range(5,5)",
        "step=range()",
        "step=range(a)",
        "step=range(0,3",
        "step=range(0,9,0)",
        "step=range(1,2,3,4)",
        "step=choice(1,2)",
        "step=[0,1]",
        "category=a-b",
        "category=a|b",
        "category=../x",
    ],
)
def test_what_is_no_axis_is_refused_with_its_own_words(given: str) -> None:
    with pytest.raises(LvdError, match=given.partition("=")[0]):
        read_axes([given], AXES)


def test_other_arguments_are_left_alone() -> None:
    arguments = ["-m", "name=0..4", "stepwise=1", "detector.head.epochs=3", "hydra/launcher=joblib", "--help"]
    assert read_axes(arguments, AXES) == ({}, arguments)


def test_the_last_of_an_axis_counts() -> None:
    axes, others = read_axes(["step=1,2", "category=0", "step=3", "-m"], AXES)
    assert ({key: axis.values() for key, axis in axes.items()}, others) == (
        {"step": ["3"], "category": ["0"]},
        ["-m"],
    )


def test_hydra_gets_a_list_or_a_range_that_it_sweeps() -> None:
    typed = ["step=0..3", "-m", "name=mine", "category=0..1,4"]
    assert expanded(typed, AXES, "jobs") == ["-m", "name=mine", "step=0,1,2,3", "category=0,1,4"]
    assert expanded(["-m", "step=0..999999"], AXES, "jobs") == ["-m", "step=range(0,1000000,1)"]
    with pytest.raises(LvdError, match="names 4 jobs: add -m"):
        expanded(typed[:1], AXES, "jobs")


@pytest.mark.parametrize("value", ["0..99999999999999999999", "range(10000000000000000)", "9" * 5000])
def test_a_number_of_any_length_gives_one_error_message(train: Shell, captured: Path, value: str) -> None:
    ran = train("-m", "category=0", f"step={value}", *TINY)
    assert ran.code == 1
    assert "has a number of sixteen digits or more" in ran.err or "the capture has no step" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("step", ["step=0..999999999", "step=range(1000000000)"])
def test_a_range_is_never_written_out_beyond_the_capture(step: str, train: Shell, captured: Path) -> None:
    tracemalloc.start()
    ran = train(*TINY, "-m", "category=0..999999999", step)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert is_refused(ran, train, "unknown categories '2..999999999'", "no steps 3..999999999: it has 0..2")
    assert peak < 200 * 2**20  # the list of the steps alone would take gigabytes
    assert ran.err.count("the capture has") == 2


@pytest.mark.parametrize(
    ("typed", "steps", "problem"),
    [
        ("step=0..60", [0, 1, 2], "no steps 3..60: it has 0..2"),
        ("step=range(5,-2,-1)", [2, 1, 0], "no steps -1, 3..5: it has 0..2"),
        ("step=2,7,0,one,9,7", [2, 0], "no steps 7, one, 9: it has 0..2"),
        ("step=range(0,9,2)", [0, 2], "no steps 4..8: it has 0..2"),
        ("step=3..3", [], "no step 3: it has 0..2"),
        ("step=2..2,range(3)", [2, 0, 1], None),
    ],
)
def test_all_steps_that_are_not_there_are_with_one_error_message(
    typed: str, steps: list[int], problem: str | None, capture: Path
) -> None:
    cells, problems = resolve_cells(capture, ["beta"], Axis.parse(typed).parts)
    assert cells == [Cell("beta", step) for step in steps]
    assert problems == ([] if problem is None else [f"the capture has {problem}"])


class Launched:
    """A launcher of Hydra that runs nothing: the batches that it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[str]] = []
        monkeypatch.setattr(Plugins, "instantiate_launcher", lambda *_, **__: self)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        axes = ("category=", "step=")
        self.batches.append(
            [" ".join(text for text in job if text.startswith(axes)) for job in job_overrides]
        )
        return []


@pytest.mark.parametrize("step", ["step=0..49", "step=range(50)", "step=0..24,range(25,50)"])
def test_a_grid_is_one_batch_of_250_jobs(
    step: str, train: Shell, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(wide / "captures" / "wide", train.directory / "captures" / "tiny")
    launched = Launched(monkeypatch)
    train("-m", "category=0..4", step, *TINY)
    assert launched.batches == [[f"category={name} step={i}" for name in FIVE for i in range(50)]]


def test_of_20_jobs_of_which_7_are_done_13_are_launched(
    train: Shell, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No product of categories and steps: the cells that are left, in one batch, and no others."""
    shutil.copytree(wide / "captures" / "wide", train.directory / "captures" / "tiny")
    settings = [*TINY, "logger=none"]
    assert train("-m", "category=0", "step=0..3", *settings).code == 0
    assert train("-m", "category=1", "step=0,2,3", *settings).code == 0
    launched = Launched(monkeypatch)
    ran = train("-m", "category=0..4", "step=0..3", *settings)
    assert "20 detectors, trained from scratch" in ran.out
    assert "7 of them are done" in ran.out
    left = [("two", 1), *((name, step) for name in FIVE[2:] for step in range(4))]
    assert launched.batches == [[f"category={name} step={step}" for name, step in left]]
    assert "13 of 20 jobs failed" in ran.err  # they did not run

    for name, step in left[1:]:
        shutil.copytree(train.run_dir / "one" / "step_00", train.run_dir / name / f"step_{step:02d}")
    assert train("-m", "category=0,1", "step=0..3", *settings).code == 1
    assert launched.batches[1:] == [["category=two step=1"]]
    assert train("-m", "category=0", "step=0..3", *settings).code == 0
    assert len(launched.batches) == 2  # nothing is left, nothing is launched


def test_one_job_runs_here_whatever_launcher_is_named(
    train: Shell, captured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without -m; the launcher of a sweep is the experiment's, or the one that is typed."""
    settings = [*TINY, "experiment=demo", "capture=tiny", "logger=none"]
    ran = train("category=0", "step=1", *settings, "hydra/launcher=joblib")
    assert ran.code == 0, ran.err
    assert "val: " in ran.out
    hydra = (train.run_dir / "alpha" / "step_01" / ".hydra" / "hydra.yaml").read_text()
    assert "hydra/launcher: basic" in hydra


# ---- the plan


def test_the_plan_counts_250_jobs_and_runs_nothing(
    wide: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ran = Shell("train.py", wide, monkeypatch, capfd)(*GRID, "plan=true", "name=wide")
    assert (ran.code, ran.err) == (0, "")
    assert "250 jobs" in ran.out
    assert "250 to do" in ran.out
    assert all(name in ran.out for name in FIVE)
    assert sorted(path.name for path in wide.iterdir()) == ["captures"]


def test_a_plan_of_some_cells(train: Shell, captured: Path) -> None:
    ran = train("-m", "category=alpha", "step=0,2", "plan=true", *TINY)
    assert (ran.code, train.run_dir.exists()) == (0, False)
    assert "2 jobs" in ran.out


def test_the_plan_of_a_trunk(train: Shell, captured: Path) -> None:
    asked = ["task=trunk", "trunk.batches=2", "trunk.fit.epochs=1", "logger=none", *TINY]
    ran = train(*asked, "plan=true")
    assert (ran.code, ran.err, train.run_dir.exists()) == (0, "", False)
    assert "1 job for runs/tiny: the trunk, to do" in ran.out
    assert train(*asked).code == 0
    assert "the trunk, done; it took" in train(*asked, "plan=true").out
    assert "the trunk, changed" in train(*asked, "plan=true", "force=true").out


def test_a_device_that_jobs_have_elsewhere_is_not_missed_here() -> None:
    check_machine(Machine(accelerator="tpu"), elsewhere=True)
    check_machine(Machine(accelerator="cpu", precision="bf16-mixed"), elsewhere=False)
    for machine in (Machine(accelerator="quantum"), Machine(precision="fp8")):
        with pytest.raises(LvdError, match="Lightning says"):
            check_machine(machine, elsewhere=True)


# ---- what stops a command line before its first job


def without_labels(capture: Path) -> None:
    write_samples(capture, [replace(sample, categories=UNLABELLED) for sample in read_samples(capture)])


def without_positives(capture: Path) -> None:
    path = capture / "samples.csv"
    path.write_text(path.read_text().replace("beta,val", "safe,val"))


def is_refused(ran: Ran, train: Shell, *words: str) -> bool:
    """One sentence on stderr with these words, exit 1, nothing on disk."""
    assert ran.code == 1
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1, ran.err
    assert "Traceback" not in ran.err
    assert [word for word in words if word not in ran.err] == [], ran.err
    assert sorted(path.name for path in train.directory.iterdir()) in ([], ["captures"])
    return True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "category=0,1"], ["step is missing"]),
        (["-m", "step=0..2"], ["category is missing"]),
        ([], ["category is missing"]),
        (["category=0", "step=0..2"], ["step=0..2 names 3 jobs", "add -m"]),
        (["category=0,1", "step=0"], ["category=0,1", "add -m"]),
        (["-m", "category=0..1", "step=0..2", "epochs=3"], ["epochs"]),
        (["-m", "category=0..1", "step=0..2", "detector.head.epoch=3"], ["epoch"]),
        (["-m", "category=0..1", "step=0..2", "detector.head.epochs=0"], ["epochs=0", "at least 1"]),
        (["-m", "category=0..1", "step=0..2", "detector.head.epochs=few"], ["epochs=few", "Integer"]),
        (["-m", "category=0..1", "step=0..2", "seed=-1"], ["seed=-1"]),
        (["-m", "category=0..1", "step=0..2", "workers=-1"], ["workers=-1"]),
        (["-m", "category=0..1", "step=0..2", "task=guess"], ["task=guess", "trunk, detector"]),
        (["-m", "category=0..1", "step=0..2", "detector.init=magic"], ["detector.init=magic"]),
        (["-m", "category=0..1", "step=0..2", "encoder.heads=3"], ["encoder.width=16", "heads=3"]),
        (["-m", "category=0..1", "step=0..2", "encoder=huge"], ["huge"]),
        (["-m", "category=0..1", "step=0..2", "name=../x"], ["name=../x"]),
        (["-m", "category=0..2", "step=0..2"], ["unknown category '2'", "0=alpha, 1=beta"]),
        (["-m", "category=gamma", "step=0..2"], ["unknown category 'gamma'"]),
        (["-m", "category=0..1", "step=0..3"], ["no step 3", "0..2"]),
        (["-m", "category=0..1", "step=one"], ["step=one", "Integer"]),
        (["-m", "category=5", "step=9"], ["category '5'", "step 9"]),
        (["-m", "category=0..1", "step=4..0"], ["step=4..0"]),
        (["-m", "category=0..1", "step=0..2", "seed=1,2"], ["seed has several values"]),
        (["-m", "category=0..1", "step=0..2", "encoder=tiny,small"], ["encoder has several values"]),
        (["-m", "category=0", "step=0", "detector.head.epochs=range(3)"], ["epochs has several values"]),
        (["-m", "category=0..1", "step=0..2", "capture=nowhere"], ["no capture at captures/nowhere"]),
        (["-m", "task=trunk"], ["one job", "-m"]),
        (["task=trunk", "step=0"], ["leave out step="]),
        (["-m", "category=0..1", "step=0..2", "precision=fp8"], ["'fp8' is invalid", "bf16-mixed"]),
        (["task=trunk", "precision=fp8"], ["'fp8' is invalid", "bf16-mixed"]),
        (["task=trunk", "plan=true", "accelerator=quantum"], ["accelerator='quantum'", "Available names"]),
        (["category=0", "step=0", "accelerator=tpu"], ["accelerator=tpu", "torch_xla"]),
        (["-m", "category=0..9", "step=0", "accelerator=quantum"], ["'2..9'", "accelerator='quantum'"]),
        (["-m", "category=0..1", "step=0..2", "detector.init=trunk"], ["no trunk", "task=trunk"]),
        (["category=0", "step=0", "seed=1,2"], ["seed"]),
        (["category=0", "step"], ["step"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_sentence_before_anything_runs(
    arguments: list[str], words: list[str], train: Shell, captured: Path
) -> None:
    assert is_refused(train(*TINY, *arguments), train, *words)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_labels, ["no labels", "labels="]),
        (lambda c: (c / "manifest.json").unlink(), ["not complete"]),
        (lambda c: (c / "samples.csv").unlink(), ["samples.csv"]),
        (without_positives, ["val split", "category beta"]),
        (shutil.rmtree, ["no capture"]),
    ],
    ids=["unlabelled", "incomplete", "no samples", "no positives", "no capture"],
)
@pytest.mark.parametrize(
    "arguments", [["-m", "category=0..1", "step=0..2"], ["task=trunk"]], ids=["-m", "trunk"]
)
def test_a_capture_that_cannot_be_trained_on_is_refused(
    damage: Callable[[Path], Any], words: list[str], arguments: list[str], train: Shell, captured: Path
) -> None:
    damage(captured)
    assert is_refused(train(*TINY, *arguments), train, *words)


# ---- sweeps


def test_a_sweep_runs_skips_and_runs_again(train: Shell, captured: Path) -> None:
    sweep = ["-m", "category=1,alpha", "step=0..2", *TINY, "logger=none"]
    ran = train(*sweep)
    assert ran.code == 0, ran.err
    first = train.results()
    assert sorted(first) == [f"{name}/step_{step:02d}" for name in NAMES for step in range(STEPS)]
    for place, result in first.items():
        assert (result["status"], result["error"]) == ("done", None)
        assert place == f"{result['category']}/step_{result['step']:02d}"
        assert result["started_from"] == "scratch"
        assert 0 <= result["metrics"]["auroc"] <= 1
        assert (train.run_dir / place / "detector" / "model.safetensors").is_file()
    assert "6 detectors, trained from scratch" in ran.out
    assert "6 of 6 detectors done" in ran.out
    assert "6 of 6 detectors are done, 0 failed" in (train.run_dir / "index.html").read_text()
    assert list(train.directory.rglob("*wandb*")) == []  # logger=none
    assert sorted(path.name for path in train.directory.iterdir()) == ["captures", "runs"]

    weights = train.run_dir / "beta" / "step_01" / "detector" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert train(*sweep).code == 0
    assert train.results() == first
    assert weights.stat().st_mtime_ns == written
    assert "6 done" in train(*sweep, "plan=true").out

    assert train(*sweep, "force=true").code == 0
    again = train.results()
    assert all(again[place]["seconds"] != result["seconds"] for place, result in first.items())
    assert all(again[place]["metrics"] == result["metrics"] for place, result in first.items())
    assert weights.stat().st_mtime_ns > written

    other = train(*sweep, "plan=true", "detector.network.epochs=2")
    assert other.code == 1
    assert "was trained with detector.network.epochs=1 and not 2" in other.err
    assert "6 changed" in train(*sweep, "plan=true", "detector.network.epochs=2", "force=true").out
    seeds = [result["seed"] for result in first.values()]
    assert len(set(seeds)) == 6
    assert seeds == [result["seed"] for result in again.values()]
    assert seeds == [cell_seed(0, Cell(r["category"], r["step"])) for r in first.values()]


def test_cell_seeds_are_as_they_were() -> None:
    assert cell_seed(0, Cell("alpha", 0)) == 639380168
    seeds = {cell_seed(seed, Cell(name, step)) for seed in (0, 1) for name in FIVE for step in range(50)}
    assert len(seeds) == 500


def test_a_failed_job_is_recorded_and_the_others_run(train: Shell, captured: Path) -> None:
    spoil(captured / "step_01" / "shard_0000.h5")
    sweep = ["-m", "category=0..1", "step=0..2", *TINY, "logger=none"]
    ran = train(*sweep)
    results = train.results()
    assert ran.code == 1
    assert {place: r["status"] for place, r in results.items()} == {
        f"{name}/step_{step:02d}": "failed" if step == 1 else "done"
        for name in NAMES
        for step in range(STEPS)
    }
    for name in NAMES:
        assert "shard_0000.h5 is not a readable shard" in results[f"{name}/step_01"]["error"]
        (row,) = [line for line in ran.err.splitlines() if line.count(f"{name}/step_01") == 2]
        assert "shard_0000.h5" in row
        assert f"runs/tiny/{name}/step_01/job.log" in row
        log = (train.run_dir / name / "step_01" / "job.log").read_text()
        assert "Traceback" in log
        assert "shard_0000.h5" in log
        assert not (train.run_dir / name / "step_01" / "detector").exists()
    assert "2 of 6 jobs failed" in ran.err
    assert "error: 2 jobs failed" in ran.err
    assert "Traceback" not in ran.err
    assert "4 done #, 2 failed x" in train(*sweep, "plan=true").out


def test_one_job_that_fails_exits_1_with_its_reason(train: Shell, captured: Path) -> None:
    spoil(captured / "step_01" / "shard_0000.h5")
    ran = train("category=beta", "step=1", *TINY, "logger=none")
    assert ran.code == 1
    assert "shard_0000.h5" in ran.err.splitlines()[-1]
    assert train.results()["beta/step_01"]["status"] == "failed"


def test_a_trunk_and_then_a_head_of_it(train: Shell, captured: Path) -> None:
    short = [*TINY, "trunk.batches=2", "trunk.fit.epochs=1", "logger=none", "detector.head.epochs=1"]
    assert train("task=trunk", *short).code == 0
    result = json.loads((train.run_dir / "trunk" / "result.json").read_text())
    assert (result["status"], result["category"], result["step"]) == ("done", None, None)
    ran = train("category=alpha", "step=2", *short)
    assert ran.code == 0
    assert "heads on the trunk" in ran.out
    assert train.results()["alpha/step_02"]["started_from"] == "trunk"
    config = json.loads((train.run_dir / "alpha" / "step_02" / "detector" / "config.json").read_text())
    assert config["kind"] == "head"


# ---- wandb


def test_every_job_has_one_finished_wandb_run_of_its_own(train: Shell, captured: Path) -> None:
    spoil(captured / "step_01" / "shard_0000.h5")
    train("-m", "category=0..1", "step=0..1", *TINY)
    results, run_ids = train.results(), set()
    assert len(results) == 4
    for place, result in results.items():
        records = wandb_records(train.run_dir / place)
        kinds = [record.WhichOneof("record_type") for record in records]
        started = [record.run for record in records if record.WhichOneof("record_type") == "run"]
        ended = [record.exit for record in records if record.WhichOneof("record_type") == "exit"]
        run_ids |= {run.run_id for run in started}
        assert started[0].display_name == f"tiny/{place}"
        assert started[0].run_group == "tiny"
        assert (started[0].job_type, started[0].project) == ("detector", "lvd")
        failed = result["status"] == "failed"
        assert [exit_.exit_code for exit_ in ended] == [int(failed)]  # finished, once
        assert ("history" in kinds) == (not failed)
        summary = {
            item.key or item.nested_key[0]: json.loads(item.value_json)
            for record in records
            if record.WhichOneof("record_type") == "summary"
            for item in record.summary.update
        }
        if not failed:
            assert summary["val/auroc"] == pytest.approx(result["metrics"]["auroc"])
    assert len(run_ids) == 4
