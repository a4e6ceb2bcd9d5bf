"""What can be asked of a sweep besides running it: plans, refusals, failing fast, loggers, overrides."""

import csv
import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning import Trainer
from transformers import VideoMAEConfig

import lvd.sweep.job
import lvd.sweep.state
from lvd.config import TrainConfig
from lvd.detect.detector_training import train_detector
from lvd.detect.fit import Setup
from lvd.detect.pretrained import Pretrained
from lvd.detect.recipe import DetectorRecipe, EncoderSize, Fit, Machine
from lvd.latents import disk
from lvd.latents.reader import CaptureReader
from lvd.sweep.check import disk_problem
from support.commands import ROOT, Shell, asked, spoil, wandb_records

TINY = ["name=tiny", "accelerator=cpu", "encoder.width=16", "encoder.layers=1", "encoder.heads=2"]
TINY += ["detector.network.epochs=1", "detector.network.shift=0", "detector.head.epochs=1"]
TINY += ["trunk.batches=2", "trunk.fit.epochs=1"]
SIX = ["-m", "category=0..1", "step=0..2"]


# ---- before the first job


def test_everything_that_is_wrong_is_in_one_list(train: Shell, captured: Path) -> None:
    (captured / "step_00" / "shard_0000.h5").unlink()
    with (captured / "step_02" / "shard_0000.h5").open("ab") as shard:
        shard.write(b"\0")
    samples = captured / "samples.csv"
    samples.write_text(samples.read_text().replace("beta,val", "safe,val"))
    ran = train(*SIX, *TINY)
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert "val split has no samples of category beta" in ran.err
    assert "step_00/shard_0000.h5 is missing" in ran.err
    assert "1 more steps like this" in ran.err
    assert not train.run_dir.exists()


def test_a_plan_shows_what_is_missing_and_why(train: Shell, captured: Path) -> None:
    (captured / "step_01" / "shard_0000.h5").unlink()
    ran = train(*SIX, *TINY, "plan=true")
    assert ran.code == 1
    assert "4 to do ., 2 data missing ?" in ran.out
    assert "step_01/shard_0000.h5 is missing" in ran.err
    assert not train.run_dir.exists()


def test_a_plan_tells_the_time_that_is_left(train: Shell, captured: Path) -> None:
    assert "not known" in train(*SIX, *TINY, "plan=true").out
    assert train("category=0", "step=1", *TINY, "logger=none").code == 0
    path = train.run_dir / "alpha" / "step_01" / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "seconds": 120.0}))
    ran = train(*SIX, *TINY, "plan=true")
    assert "1 done #, 0 failed x, 0 changed ~, 5 to do ." in ran.out
    assert "about 10.0 min of training left, one by one (120.00 s a job)" in ran.out


def test_a_full_disk_is_found_before_the_first_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _: 300 * 2**20)
    run = tmp_path / "not" / "there"
    assert disk_problem(run, 250, 0, page=True) == []
    assert disk_problem(run, 1, 295 * 2**20, page=False) == []
    assert "1 jobs write about 305 MB" in disk_problem(run, 1, 295 * 2**20, page=True)[0]
    (sentence,) = disk_problem(run, 250, 2**20, page=False)
    assert "250 jobs write about 312 MB" in sentence
    assert "300 MB are free" in sentence


def test_the_captures_files_are_read_once_for_a_whole_plan(
    train: Shell, captured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    digest = lvd.sweep.state.file_sha256
    monkeypatch.setattr(lvd.sweep.state, "file_sha256", lambda path: read.append(path.name) or digest(path))
    assert train(*SIX, *TINY, "plan=true").code == 0
    assert sorted(read) == ["manifest.json", "samples.csv"]


@pytest.fixture
def read_only(train: Shell) -> Iterator[Path]:
    """A folder that nobody may write to, the superuser neither."""
    directory = train.directory / "closed"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,ro", "lvd-test", str(directory)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.parametrize("plan", [[], ["plan=true"]], ids=["run", "plan"])
@pytest.mark.parametrize(
    "asked", [SIX, ["category=0", "step=1"], ["task=trunk"]], ids=["sweep", "one job", "trunk"]
)
def test_a_folder_that_cannot_be_written_is_told_before_the_first_job(
    asked: list[str], plan: list[str], train: Shell, captured: Path, read_only: Path
) -> None:
    (train.directory / "file").write_text("")
    for runs, why in (("closed", "Read-only file system"), ("file/x", "Not a directory")):
        ran = train(*asked, *TINY, f"runs={runs}", *plan)
        assert (ran.code, ran.err.count("\n")) == (1, 1), ran.err
        assert f"nothing can be written to {runs}/tiny" in ran.err
        assert why in ran.err


def test_a_page_that_cannot_be_written_ends_no_sweep(
    train: Shell, captured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run: Path, results: Any, *, running: bool) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device", str(run / "index.html"))

    monkeypatch.setattr("lvd.sweep.page.write_index", full)
    ran = train("-m", "category=0", "step=0..1", *TINY, "logger=none")
    assert ran.code == 0, ran.err
    assert "the page runs/tiny/index.html is not up to date: the disk of runs/tiny is full" in ran.err
    assert "Traceback" not in ran.err
    assert "page:" not in ran.out
    assert len(train.results()) == 2


def test_a_disk_that_fills_up_in_mid_sweep_gives_one_error_message(
    train: Shell, captured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two jobs it cannot even be written that they have failed."""
    write = lvd.sweep.job.write_result

    def fill_up(directory: Path, result: Any) -> None:
        if directory.name == "step_01":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(directory, result)

    monkeypatch.setattr(lvd.sweep.job, "write_result", fill_up)
    ran = train(*SIX, *TINY, "logger=none")
    assert ran.code == 1
    assert "the disk of runs/tiny is full (" in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err
    assert list(train.results()) == ["alpha/step_00", "alpha/step_02", "beta/step_00", "beta/step_02"]


# ---- a run's name stands for one configuration


def test_another_configuration_under_a_used_name_is_refused(train: Shell, captured: Path) -> None:
    one = ["category=0", "step=1", *TINY, "logger=none"]
    assert train(*one).code == 0
    first = train.results()
    for other in (
        "seed=1",
        "detector.network.learning_rate=0.01",
        "detector.negatives=all",
        "encoder.width=32",
    ):
        ran = train("category=1", "step=2", *TINY, other, "logger=none")  # another cell of the same run
        key, _, value = other.partition("=")
        assert ran.code == 1
        assert re.search(rf"was trained with .*{key}=\S+ and not {value}", ran.err)
        assert "another name=, or force=true" in ran.err
        assert train.results() == first
    for same in ("detector.head.epochs=7", "workers=1", "threads=1"):  # nothing that its outcome depends on
        assert "1 done" in train(*one, "plan=true", same).out
    assert train(*one, "seed=1", "force=true").code == 0
    assert train.results()["alpha/step_01"]["settings"]["seed"] == 1


def test_a_new_trunk_or_new_labels_just_run_again(train: Shell, captured: Path) -> None:
    one = ["category=0", "step=1", *TINY, "logger=none"]
    assert train(*one).code == 0
    assert train("task=trunk", *TINY, "logger=none").code == 0
    assert "1 changed ~" in train(*one, "plan=true").out
    assert train(*one).code == 0
    assert train.results()["alpha/step_01"]["started_from"] == "trunk"
    ran = train("task=trunk", *TINY, "trunk.batches=3", "logger=none")
    assert (ran.code, "trunk.batches=2 and not 3" in ran.err) == (1, True)
    assert train("task=trunk", *TINY, "trunk.batches=3", "logger=none", "force=true").code == 0
    assert "1 changed ~" in train(*one, "plan=true").out
    samples = captured / "samples.csv"
    samples.write_text(samples.read_text().replace("prompt number 7,", "prompt number seven,"))
    assert "python train.py task=trunk name=tiny" in train(*one).err  # it learned from other data
    assert train("task=trunk", *TINY, "trunk.batches=3", "logger=none").code == 0
    assert train(*one).code == 0
    assert "1 done #" in train(*one, "plan=true").out


# ---- failures


def test_a_job_that_exits_is_a_failure_of_its_own(
    train: Shell, captured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, jobs = Trainer.fit, itertools.count()

    def exits(*arguments: Any, **options: Any) -> None:
        if next(jobs) == 1:
            sys.exit("a library had enough")
        fit(*arguments, **options)

    monkeypatch.setattr(Trainer, "fit", exits)
    ran = train(*SIX, *TINY, "logger=none")
    assert ran.code == 1
    assert "1 of 6 jobs failed" in ran.err
    assert "SystemExit: a library had enough" in ran.err
    assert [place for place, r in train.results().items() if r["status"] == "failed"] == ["alpha/step_01"]
    log = (train.run_dir / "alpha" / "step_01" / "job.log").read_text()
    assert "in exits" in log
    assert "Traceback" not in ran.err


def test_fail_fast_stops_at_the_first_failure(train: Shell, captured: Path) -> None:
    spoil(captured / "step_01" / "shard_0000.h5")
    ran = train(*SIX, *TINY, "logger=none", "fail_fast=true")
    assert ran.code == 1
    assert {place: r["status"] for place, r in train.results().items()} == {
        "alpha/step_00": "done",
        "alpha/step_01": "failed",
    }
    assert "1 of 6 jobs failed" in ran.err
    assert "fail_fast: 4 jobs were not started" in ran.err
    assert train(*SIX, *TINY, "logger=none").code == 1
    assert len(train.results()) == 6  # the same grid without it: all of the others


# ---- loggers


def test_curves_as_csv(train: Shell, captured: Path) -> None:
    for _ in range(2):  # the second time over the first
        assert train("category=0", "step=1", *TINY, "logger=csv", "force=true").code == 0
    directory = train.run_dir / "alpha" / "step_01"
    with (directory / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    aurocs = [float(row["val/auroc"]) for row in rows if row["val/auroc"]]
    assert aurocs == pytest.approx(train.results()["alpha/step_01"]["curves"]["auroc"])
    assert not (directory / "wandb").exists()


def test_curves_for_tensorboard(train: Shell, captured: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train("category=0", "step=1", *TINY, "logger=tensorboard").code == 0
    events = EventAccumulator(str(train.run_dir / "alpha" / "step_01" / "tensorboard"))
    events.Reload()
    aurocs = [event.value for event in events.Scalars("val/auroc")]
    assert aurocs == pytest.approx(train.results()["alpha/step_01"]["curves"]["auroc"])


def test_a_project_is_wandbs_alone(train: Shell, captured: Path) -> None:
    ran = train("category=0", "step=1", *TINY, "logger=csv", "logger.project=mine")
    assert (ran.code, "logger=wandb" in ran.err) == (1, True)


@pytest.mark.long
def test_20_jobs_in_one_process_are_20_wandb_runs(
    train: Shell, wide: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import wandb
    from wandb.cli.cli import cli

    shutil.copytree(wide / "captures" / "wide", train.directory / "captures" / "tiny")
    assert train("-m", "category=0..4", "step=0..3", *TINY).code == 0
    results, ids = train.results(), set()
    assert len(results) == 20
    for place, result in results.items():
        (run,) = (train.run_dir / place / "wandb").glob("offline-run-*")
        records = wandb_records(train.run_dir / place)
        assert [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] == [0]
        with pytest.raises(SystemExit):
            cli.main(["leet", "inspect", "--summary", "--json", str(run)])
        inspected = json.loads(capfd.readouterr().out)
        ids.add(run.name.rpartition("-")[2])
        summary = inspected.get("summary", inspected)
        assert summary["val/auroc"] == pytest.approx(result["metrics"]["auroc"])
        assert f"tiny/{place}" in str([r.run.display_name for r in records])
    assert len(ids) == 20
    assert wandb.run is None


@pytest.fixture
def fresh_wandb() -> Iterator[None]:
    """wandb reads its environment once in a process."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.usefixtures("fresh_wandb")
def test_the_commands_of_a_wandb_agent(train: Shell, captured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `wandb agent` makes them of the sweep file, with the environment that it sets."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load((ROOT / "docs" / "wandb_sweep.yaml").read_text())
    axes = sweep["parameters"]
    assert (axes["category"]["values"], axes["step"]["values"]) == (list(range(5)), list(range(50)))
    chosen = {"category": {"value": 1}, "name": {"value": "tiny"}, "step": {"value": 2}}
    given = create_sweep_command_args({"args": chosen})
    words = {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep["program"]], **given}
    command = [
        word for part in create_sweep_command(sweep["command"]) for word in words.get(part[2:-1], [part])
    ]
    assert command[:3] == ["/usr/bin/env", "python", "train.py"]
    for name, value in {"RUN_ID": "abc123", "SWEEP_ID": "sweep99"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    ran = train(*command[3:], *TINY[1:])
    assert ran.code == 0, ran.err
    records = wandb_records(train.run_dir / "beta" / "step_02")
    (run, *_) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.sweep_id) == ("abc123", "sweep99")


# ---- overrides


def documented() -> list[str]:
    """The overrides of the first table of docs/overrides.md, each as it is written there."""
    text = (ROOT / "docs" / "overrides.md").read_text().partition("## Ready")[0]
    cells = [line.split("|")[2] for line in text.splitlines() if line.startswith("| ") and "`" in line]
    return [re.search(r"`(.+?)`", cell)[1] for cell in cells]  # type: ignore[index]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's weights and a VAE, as if they could be had here."""
    monkeypatch.setattr(Pretrained, "config", VideoMAEConfig(num_labels=2))
    monkeypatch.setattr("lvd.sweep.request.frames_problem", lambda *_, **__: [])


@pytest.mark.usefixtures("hub")
def test_every_documented_override_is_understood(
    train: Shell, captured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that a page names is refused by the command; captures= and runs= go elsewhere."""
    monkeypatch.chdir(train.directory)
    overrides = [line for line in documented() if "captures=" not in line and "category=" not in line]
    assert len(overrides) > 20
    seen: dict[str, TrainConfig] = {}
    for line in overrides:
        seen[line] = asked(*SIX[1:], "name=tiny", *line.split()).config
    assert (
        len({str(config) for config in seen.values()}) >= len(seen) - 1
    )  # each changes something: devices=1


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("experiment", sorted(path.stem for path in (ROOT / "conf/experiment").iterdir()))
def test_an_experiment_is_one_override(
    experiment: str, train: Shell, captured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(train.directory)
    captured.rename(captured.with_name("demo"))
    request = asked(*SIX[1:], f"experiment={experiment}")
    assert request.config.name == experiment
    assert len(request.cells) == 6


@pytest.mark.parametrize("sweep", [[], ["-m"]], ids=["one job", "-m"])
def test_what_is_typed_wins_over_an_experiment(sweep: list[str], train: Shell, captured: Path) -> None:
    """Choices from groups, single settings, and both, in any order; seen in what the jobs were run with."""
    captured.rename(captured.with_name("demo"))
    typed = [
        "encoder.layers=1",
        "encoder=small",
        "logger=csv",
        "experiment=smoke",
        "name=tiny",
        "encoder.heads=4",
    ]
    ran = train(*sweep, "category=0", "step=1", *typed, "accelerator=cpu", "detector.network.epochs=1")
    assert ran.code == 0, ran.err
    settings = train.results()["alpha/step_01"]["settings"]
    size = {key: settings[f"encoder.{key}"] for key in ("width", "layers", "heads", "patch")}
    assert size == {"width": 192, "layers": 1, "heads": 4, "patch": None}
    assert (train.run_dir / "alpha" / "step_01" / "csv").is_dir()


def test_an_experiment_holds_where_nothing_is_typed(
    train: Shell, captured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(train.directory)
    captured.rename(captured.with_name("demo"))
    config = asked(*SIX[1:], "experiment=smoke", "seed=3").config
    assert (config.encoder.width, config.logger.kind, config.logger.project) == (32, "none", None)
    assert (config.detector.head.epochs, config.seed) == (2, 3)


def test_a_configuration_is_shown_as_it_is_run(train: Shell) -> None:
    shown = train("--cfg", "job", "experiment=smoke", "encoder=base", "logger=wandb", "encoder.heads=6").out
    config = yaml.safe_load(shown)
    assert config["encoder"] == {"width": 768, "layers": 12, "heads": 6, "tubelet": 2, "patch": None}
    assert config["logger"] == {"kind": "wandb", "project": "lvd", "entity": None}


def test_an_experiment_of_ones_own_takes_ready_values(train: Shell) -> None:
    """Its own values lie over them, and a choice that is typed over both."""
    folder = train.directory / "own" / "experiment"
    folder.mkdir(parents=True)
    mine = "# @package _global_\ndefaults:\n  - /encoder/small\nencoder: {layers: 2, patch: 4}\n"
    (folder / "mine.yaml").write_text(mine)
    (folder / "old.yaml").write_text(mine.replace("/encoder/small", "override /encoder: small"))

    def size(*arguments: str) -> tuple[int, int, int | None]:
        shown = yaml.safe_load(train("--config-dir", "own", "--cfg", "job", *arguments).out)["encoder"]
        return shown["width"], shown["layers"], shown["patch"]

    assert size("experiment=mine") == (192, 2, 4)
    assert size("experiment=mine", "encoder=tiny") == (96, 4, None)
    assert size("experiment=mine", "encoder=tiny", "encoder.patch=2") == (96, 4, 2)
    ran = train("--config-dir", "own", "category=0", "step=0", "experiment=old")
    assert (ran.code, ran.err.count("\n")) == (1, 1), ran.err
    assert "take its values with `- /encoder/NAME` in defaults instead" in ran.err


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("devices=2", "a detector trains on one device, and task=trunk on several"),
        ("devices=0", "must be at least 1"),
        ("detector.head.optimizer=lion", "adamw, adam, sgd"),
        ("hydra/launcher=cloud", "Available options in 'hydra/launcher': basic, joblib, ray"),
        (
            "encoder=huge",
            "Could not find 'encoder/huge'. Available options in 'encoder': base, micro, small, tiny",
        ),
        ("encoder=smal", "did you mean encoder=small?"),
        (
            "experiment=smok",
            "Available options in 'experiment': demo, paper, smoke: did you mean experiment=smoke?",
        ),
        ("encode=tiny", "there is no setting encode: did you mean encoder?"),
        ("+encode=tiny", "there is no setting encode: did you mean encoder?"),
        ("encoder.widht=3", "there is no setting encoder.widht: did you mean encoder.width?"),
        ("+encoder.widht=3", "there is no setting encoder.widht: did you mean encoder.width?"),
        ("epochs=3", "did you mean trunk.fit.epochs or detector.head.epochs or detector.network.epochs?"),
        ("hydra/lancher=joblib", "did you mean hydra/launcher?"),
        ("foo=1", "there is no setting foo: --help lists them"),
    ],
)
def test_an_override_that_cannot_be_is_refused(
    override: str, words: str, train: Shell, captured: Path
) -> None:
    ran = train(*SIX, *TINY, override)
    assert ran.code == 1
    assert words in ran.err
    assert "Traceback" not in ran.err
    assert "append to your config" not in ran.err
    assert (ran.err.count("\n"), train.run_dir.exists()) == (1, False)


def test_optimiser_and_cache_are_read(capture: Path, tmp_path: Path) -> None:
    setup = Setup(EncoderSize(width=16, layers=1, heads=2), Machine(accelerator="cpu"), seed=0)

    def curves(cache: bool = False, **changes: Any) -> dict[str, list[float]]:
        values = {"epochs": 20, "batch_size": 16, "learning_rate": 1e-3, "weight_decay": 0.0}
        fit = Fit(**{**values, **changes})
        recipe = DetectorRecipe(init="scratch", head=fit, network=fit, cache=cache)
        reader = CaptureReader(capture)
        return train_detector(reader, tmp_path, tmp_path / "cell", "alpha", 1, recipe, setup).curves

    plain = curves()
    assert len(plain["epoch"]) == 5
    assert curves(cache=True) == plain
    assert curves(optimizer="sgd")["loss"] != plain["loss"]


def test_completion_in_the_shell(train: Shell) -> None:
    answer = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-sc", "query=bash"],
        cwd=ROOT,
        env={**os.environ, "COMP_LINE": "python train.py encoder="},
        capture_output=True,
        text=True,
    )
    assert answer.stdout.split() == ["encoder=base", "encoder=micro", "encoder=small", "encoder=tiny"], (
        answer.stderr
    )


def test_help_does_not_wait_for_torch() -> None:
    heavy = ["torch", "lightning", "wandb", "ray", "plotly"]
    code = f"import sys, train; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]", ran.stderr
