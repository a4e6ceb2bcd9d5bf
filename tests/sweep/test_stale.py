"""A trunk of other labels, a damaged file: named with the command that mends it, and never built on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import lvd.sweep.state
from conftest import NAMES, STEPS
from lvd.capture.labels import label
from lvd.files import file_sha256
from lvd.guard.bundle import load_bundle
from lvd.latents.reader import CaptureReader
from support.commands import Ran, Shell

TINY = [
    "name=tiny",
    "accelerator=cpu",
    "encoder.width=16",
    "encoder.layers=1",
    "encoder.heads=2",
    "logger=none",
]
TINY += ["trunk.batches=4", "trunk.fit.epochs=1", "detector.head.epochs=1"]
SIX = ["-m", "category=0..1", "step=0..2", *TINY]
TRUNK = ["task=trunk", *TINY]


def relabel(capture: Path) -> None:
    """One sample less is unsafe."""
    rows = [f"{s.sample_id},{s.categories[0]}" for s in CaptureReader(capture).samples if s.categories]
    labels = capture.parent / "labels.csv"
    labels.write_text("\n".join(["sample_id,category", *rows[1:]]) + "\n")
    label(capture, labels, seed=0, unnamed="safe")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run is kept that the first test makes."""
    return tmp_path_factory.mktemp("trained") / "tiny"


@pytest.fixture
def swept(train: Shell, captured: Path, trained: Path) -> Path:
    """A run of a trunk and six heads."""
    if not trained.exists():
        for command in (TRUNK, SIX):
            ran = train(*command)
            assert ran.code == 0, ran.err
        train.run_dir.rename(trained)
    return Path(shutil.copytree(trained, train.run_dir))


def flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def is_one_message(ran: Ran, *words: str) -> bool:
    last = ran.err.splitlines()[-1]
    assert ran.code == 1
    assert last.startswith("error: ")
    assert "Traceback" not in ran.err
    assert [word for word in words if word not in last] == [], last
    return True


# ---- stale


def test_heads_are_not_fitted_on_a_trunk_of_other_labels(train: Shell, captured: Path, swept: Path) -> None:
    before = train.results()
    relabel(captured)
    words = ["trunk was trained on other data or labels", "python train.py task=trunk name=tiny"]
    assert is_one_message(train(*SIX), *words)
    assert is_one_message(train("category=0", "step=1", *TINY), *words)
    assert is_one_message(train(*SIX, "force=true"), *words)
    plan = train(*SIX, "plan=true")
    assert "6 changed ~" in plan.out
    assert is_one_message(plan, *words)
    assert train.results() == before

    assert train(*TRUNK).code == 0
    assert "6 changed ~" in train(*SIX, "plan=true").out
    assert train(*SIX).code == 0
    assert "6 done #" in train(*SIX, "plan=true").out


def test_heads_of_new_labels_on_the_trunk_of_the_old_are_stale_where_they_stand(
    train: Shell, captured: Path, swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As earlier versions fitted them, and called them done."""
    relabel(captured)
    with monkeypatch.context() as patch:
        patch.setattr(
            lvd.sweep.job, "check_trunk", lambda run, *_: (lvd.sweep.state.trunk_digest(run / "trunk"), None)
        )
        assert train(*SIX).code == 0
    plan = train(*SIX, "plan=true")
    assert "6 changed ~" in plan.out
    assert is_one_message(plan, "python train.py task=trunk name=tiny")
    train.script = "evaluate.py"
    ran = train("name=tiny", "eta=2", "logger=none", "examples=0")
    assert is_one_message(ran, "python train.py task=trunk name=tiny")
    assert not (swept / "evaluation").exists()


def test_detectors_from_scratch_do_not_mind_a_stale_trunk(train: Shell, captured: Path, swept: Path) -> None:
    relabel(captured)
    scratch = [*TINY, "detector.init=scratch", "detector.network.epochs=1", "force=true"]
    assert train("category=0", "step=1", *scratch).code == 0
    assert train.results()["alpha/step_01"]["started_from"] == "scratch"


def test_a_trunk_of_another_capture_is_stale(train: Shell, captured: Path) -> None:
    other = Path(shutil.copytree(captured, captured.parent / "other"))
    relabel(other)
    assert train(*TRUNK, "capture=other").code == 0
    assert is_one_message(train(*SIX), "python train.py task=trunk name=tiny")
    assert train(*SIX, "capture=other").code == 0


def test_a_trunk_whose_training_was_killed_is_not_built_on(train: Shell, captured: Path, swept: Path) -> None:
    (swept / "trunk" / "result.json").unlink()  # removed when a job begins
    assert is_one_message(train(*SIX), "its job did not finish", "python train.py task=trunk name=tiny")


# ---- damaged


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_a_job_whose_weights_are_damaged_runs_again(
    damage: Callable[[Path], None], train: Shell, captured: Path, swept: Path
) -> None:
    weights = swept / "alpha" / "step_01" / "detector" / "model.safetensors"
    whole = weights.read_bytes()
    damage(weights)
    assert (
        "5 done #, 0 failed x, 0 changed ~, 0 to do ., 0 data missing ?, 1 damaged !"
        in train(*SIX, "plan=true").out
    )
    ran = train("name=tiny", "verify=true")
    assert is_one_message(ran, "run runs/tiny is damaged: 1 bad files")
    assert "alpha/step_01/detector/model.safetensors is " in ran.out
    ran = train(*SIX)
    assert ran.code == 0, ran.err
    assert "5 of them are done" in ran.out
    assert weights.read_bytes() == whole
    ran = train("name=tiny", "verify=true")
    assert ran.code == 0
    assert "run runs/tiny is as it was written: 21 files" in ran.out  # a result and two files of seven jobs


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_a_damaged_trunk_is_named_and_made_again_bit_for_bit(
    damage: Callable[[Path], None], train: Shell, captured: Path, swept: Path
) -> None:
    weights = swept / "trunk" / "model.safetensors"
    whole = weights.read_bytes()
    damage(weights)
    words = ["runs/tiny/trunk/model.safetensors is ", "python train.py task=trunk name=tiny"]
    assert is_one_message(train(*SIX), *words)
    assert is_one_message(train("category=0", "step=1", *TINY, "detector.tuning=full"), *words)
    assert "trunk/model.safetensors is " in train("name=tiny", "verify=true").out
    assert train(*TRUNK).code == 0
    assert weights.read_bytes() == whole
    assert "6 done #" in train(*SIX, "plan=true").out


def test_verify_names_every_damaged_file_of_a_run_and_its_bundles(
    train: Shell, captured: Path, swept: Path
) -> None:
    train.script = "evaluate.py"
    ran = train("name=tiny", "eta=2", "logger=none", "examples=0")
    assert ran.code == 0, ran.err
    train.script = "train.py"
    assert train("name=tiny", "verify=true").code == 0
    bundle = (swept / "bundle").resolve()
    damaged = [
        swept / "trunk" / "config.json",
        swept / "beta" / "step_02" / "detector" / "model.safetensors",
        bundle / "alpha" / "step_00" / "model.safetensors",
    ]
    for path in damaged:
        flip(path)
    (swept / "alpha" / "step_00" / "result.json").write_text("{")
    ran = train("name=tiny", "verify=true")
    assert is_one_message(ran, "4 bad files")
    for words in (
        "trunk/config.json is damaged",
        "beta/step_02/detector/model.safetensors is damaged",
        "alpha/step_00/model.safetensors was changed",
        "alpha/step_00/result.json is damaged",
    ):
        assert words in ran.out


def test_verify_finds_a_pointer_to_no_bundle(train: Shell, captured: Path, swept: Path) -> None:
    (swept / "bundle").unlink(missing_ok=True)
    (swept / "bundle").symlink_to("bundles/000000000000")
    ran = train("name=tiny", "verify=true")
    assert ran.code == 1
    assert "bundle points to a bundle that is not there: bundles/000000000000" in ran.out


def test_verify_of_no_run_gives_one_error_message(train: Shell) -> None:
    assert is_one_message(train("name=tiny", "verify=true"), "no run at runs/tiny")


def test_a_result_of_an_earlier_version_is_read_as_before(train: Shell, captured: Path, swept: Path) -> None:
    for path in swept.rglob("result.json"):
        result = json.loads(path.read_text())
        del result["files"], result["data"]
        path.write_text(json.dumps(result))
    assert "6 done #" in train(*SIX, "plan=true").out
    flip(swept / "alpha" / "step_01" / "detector" / "model.safetensors")
    assert "6 done #" in train(*SIX, "plan=true").out  # nothing to hold it against
    told = "run runs/tiny cannot be checked: 7 of its jobs were done by an earlier version"
    assert is_one_message(train("name=tiny", "verify=true"), told)


def test_a_plan_hashes_each_file_once(
    train: Shell, captured: Path, swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return file_sha256(path)

    monkeypatch.setattr(lvd.sweep.state, "file_sha256", counted)
    assert train(*SIX, "plan=true").code == 0
    assert len(hashed) == len(set(hashed)) == 2 + 2 * (1 + len(NAMES) * STEPS)
    assert {captured / "manifest.json", captured / "samples.csv"} <= {path.resolve() for path in hashed}


def test_what_a_run_learned_from_is_written_down_once(train: Shell, captured: Path, swept: Path) -> None:
    (path,) = swept.glob("trained_on_*.json")
    learned = json.loads(path.read_text())
    assert {result["data"] for result in train.results().values()} == {path.stem.removeprefix("trained_on_")}
    assert (learned["capture"], learned["origin"]["guidance"]) == ("tiny", 5.0)
    samples = CaptureReader(captured).samples
    assert len(learned["trained"]) == 2 * sum(s.split == "train" for s in samples)
    assert "prompt number" not in path.read_text()  # digests


def test_a_run_of_an_earlier_version_loads_its_bundle_as_ever(
    train: Shell, captured: Path, swept: Path
) -> None:
    train.script = "evaluate.py"
    evaluate = ["name=tiny", "logger=none", "examples=0"]
    assert train(*evaluate, "eta=2").code == 0
    digest = load_bundle(swept / "bundle").digest
    content = (swept / "bundle").resolve()
    (swept / "bundle").unlink()
    content.rename(swept / "bundle")
    ran = train(*evaluate, "eta=1")
    assert ran.code == 0, ran.err
    assert f"digest {load_bundle(swept / 'bundle').digest}" in ran.out
    assert load_bundle(swept / "bundles" / digest[:12]).digest == digest
