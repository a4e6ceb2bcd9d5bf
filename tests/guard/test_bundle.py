"""A bundle is what was exported, byte by byte, or it is refused; what it answers is what the run answers."""

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lvd.guard.pointer
from conftest import MEASURED, NAMES, StubPipeline, bundle_info, untrained_run
from lvd.decide.rules import Vote
from lvd.decide.sequential import Evidence, Sequential
from lvd.detect.files import load_detector, load_trunk, trunk_digest
from lvd.detect.network import HeadDetector
from lvd.errors import LvdError
from lvd.guard import Guard
from lvd.guard.bundle import BundleInfo, load_bundle
from lvd.guard.export import export_bundle
from lvd.sampling.tap import tap_x0

ETA = 4
KINDS: dict[str, Callable[[str, int], str]] = {
    "heads": lambda name, step: "head",
    "networks": lambda name, step: "network",
    "both": lambda name, step: "network" if (name == "alpha") == bool(step % 2) else "head",
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("untrained")
    return {name: untrained_run(folder / name, kind, steps=ETA + 1) for name, kind in KINDS.items()}


def pipeline() -> StubPipeline:
    pipe = StubPipeline()
    pipe.shape = (4, 8, 8, 8)
    return pipe


@pytest.fixture(scope="session")
def info() -> BundleInfo:
    return bundle_info(pipeline(), call={})


@pytest.fixture
def digest(runs: dict[str, Path], info: BundleInfo, tmp_path: Path) -> str:
    return export_bundle(tmp_path / "bundle", runs["both"], info)


@pytest.fixture
def bundle(digest: str, tmp_path: Path) -> Path:
    return tmp_path / "bundle"


def files_of(bundle: Path) -> list[Path]:
    return sorted(path for path in bundle.rglob("*") if path.is_file())


def refused(bundle: Path, digest: str | None = None) -> bool:
    try:
        load_bundle(bundle, digest)
    except LvdError:
        return True
    return False


def reseal(bundle: Path) -> None:
    """Write the manifest anew, as somebody would who changed a file and knows the format."""
    digests = {
        path.relative_to(bundle).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files_of(bundle)
        if path.name != "manifest.json"
    }
    listed = {"format_version": 1, "files": digests}
    (bundle / "manifest.json").write_text(json.dumps(listed, indent=1, sort_keys=True) + "\n")


# ---- the rule


def test_a_bundle_holds_a_sequential_rule(runs: dict[str, Path], info: BundleInfo, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tables = rng.normal(size=(3, ETA, 2))
    rule = Sequential(Evidence(*tables), (1.5, 2.5), ("block", "flag"), 0.05, "confidence", 59, (-2.0, -0.5))
    export_bundle(tmp_path / "bundle", runs["both"], replace(info, rule=rule))
    found = load_bundle(tmp_path / "bundle").info.rule
    assert found.as_json() == rule.as_json()
    scores = rng.random((200, ETA, 2))
    assert np.array_equal(found.decide(scores).blocked, rule.decide(scores).blocked)
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert (
        "With 95% confidence over the draw of the 59 safe prompts that calibrated it, at most a share 0.05"
        in card
    )


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "oracle"},
        {"kind": "vote", "eta": 0, "lam": 0.5, "threshold": 0.5},
        {"kind": "sequential", "boundary": [1.0]},
        {"kind": "sequential", "policy": ["block", "ignore"]},
        {"kind": "sequential", "evidence": {}},
    ],
    ids=str,
)
def test_a_rule_that_is_none_is_refused(
    change: dict[str, Any], runs: dict[str, Path], info: BundleInfo, tmp_path: Path
) -> None:
    tables = np.ones((3, ETA, 2))
    rule = Sequential(Evidence(*tables), (1.5, 2.5), ("block", "flag"), 0.05, "marginal", 59)
    bundle = tmp_path / "bundle"
    export_bundle(bundle, runs["both"], replace(info, rule=rule))
    raw = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**raw, "rule": {**raw["rule"], **change}}))
    reseal(bundle)
    assert refused(bundle)


def test_a_bundle_of_version_1_is_read_as_a_vote(
    runs: dict[str, Path], info: BundleInfo, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    export_bundle(bundle, runs["both"], info)
    raw = json.loads((bundle / "bundle.json").read_text())
    del raw["rule"]
    old = {**raw, "format_version": 1, "eta": ETA, "lam": 0.25, "threshold": 0.5}
    (bundle / "bundle.json").write_text(json.dumps(old))
    reseal(bundle)
    assert load_bundle(bundle).info.rule == Vote(ETA, 0.25, 0.5)


# ---- what is exported


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_answers_as_the_detectors_of_its_run(
    kind: str, runs: dict[str, Path], info: BundleInfo, tmp_path: Path
) -> None:
    run = runs[kind]
    export_bundle(tmp_path / "bundle", run, info)
    detectors = load_bundle(tmp_path / "bundle").detectors
    assert not detectors.training
    trunk = load_trunk(run / "trunk") if kind != "networks" else None
    x0 = torch.randn(5, *info.origin.latent_shape, generator=torch.Generator().manual_seed(0)).half()
    with torch.inference_mode():
        for step in range(ETA):
            logits = detectors(step, x0)
            assert logits.shape == (5, len(NAMES))
            for column, name in enumerate(NAMES):
                own = load_detector(run / name / f"step_{step:02d}" / "detector", trunk_digest(run / "trunk"))
                if isinstance(own, HeadDetector):
                    features = trunk.features(x0, step)
                    expected = own.double()(features.double())
                else:
                    expected = own(x0).double()
                torch.testing.assert_close(logits[:, column].double(), expected, rtol=1e-5, atol=1e-5)
                assert expected.std() > 1e-3


def test_a_guard_scores_with_the_detectors_of_its_bundle(
    runs: dict[str, Path], info: BundleInfo, tmp_path: Path
) -> None:
    digest = export_bundle(tmp_path / "bundle", runs["both"], replace(info, rule=Vote(ETA, 0.25, 0.99)))
    guard, pipe = Guard.from_pretrained(tmp_path / "bundle", digest=digest), pipeline()
    x0: list[torch.Tensor] = []
    with tap_x0(pipe.scheduler, lambda step, timestep, x0_BCFHW: x0.append(x0_BCFHW.half())):
        result = guard(pipe, prompt=["one", "two"])
    detectors = load_bundle(tmp_path / "bundle").detectors
    expected = torch.stack([detectors(step, x0[step]).sigmoid() for step in range(ETA)], dim=1)
    for decision, scores in zip(result.decisions, expected, strict=True):
        assert (decision.outcome, decision.step) == ("safe", ETA - 1), decision.why
        torch.testing.assert_close(torch.tensor(decision.scores), scores)


def test_a_bundle_holds_the_first_eta_steps_and_what_they_need(bundle: Path, info: BundleInfo) -> None:
    cells = [f"{name}/step_{step:02d}" for name in NAMES for step in range(ETA)]
    expected = {"bundle.json", "README.md", "manifest.json"} | {
        f"{directory}/{file}"
        for directory in ["trunk", *cells]
        for file in ("config.json", "model.safetensors")
    }
    assert {path.relative_to(bundle).as_posix() for path in files_of(bundle)} == expected
    assert load_bundle(bundle).info == info


def test_the_digest_is_of_the_content_alone(
    bundle: Path, digest: str, runs: dict[str, Path], info: BundleInfo, tmp_path: Path
) -> None:
    assert export_bundle(tmp_path / "again", runs["both"], info) == digest
    assert load_bundle(tmp_path / "again", digest).digest == digest
    assert hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest() == digest
    assert export_bundle(tmp_path / "other", runs["heads"], info) != digest


def test_the_model_card_names_the_measured_rates(bundle: Path) -> None:
    card = (bundle / "README.md").read_text()
    rows = {tuple(cell.strip() for cell in line.strip("| \n").split("|")) for line in card.splitlines()}
    assert ("right decisions", "0.912", "0.840 to 0.957") in rows
    assert ("unsafe samples caught", "0.871", "0.780 to 0.928") in rows
    assert ("safe samples blocked", "0.043", "0.012 to 0.145") in rows
    assert ("alpha", "31", "0.903", "0.751 to 0.967") in rows
    assert "caught: 54 of 62: 87.1%. Safe samples blocked: 0 of 40: at most 7.2%. Intervals: wilson." in card
    assert ("beta", "0", "–") in rows
    assert f"On {MEASURED['n_test']} test samples of the capture `tiny`, whose prompts neither" in card
    assert "Of the 27 unsafe samples caught" in card
    assert "a share of 0.926 (0.766 to 0.979); 1.0 are named on average" in card
    assert "first 4 of 6 denoising steps" in card


def no_detector(run: Path) -> None:
    shutil.rmtree(run / "beta" / "step_03" / "detector")


def no_trunk(run: Path) -> None:
    shutil.rmtree(run / "trunk")


def another_trunk(run: Path) -> None:
    weights = (run / "trunk" / "model.safetensors").read_bytes()
    (run / "trunk" / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))


def no_safetensors(run: Path) -> None:
    (run / "beta" / "step_03" / "detector" / "model.safetensors").write_bytes(b"nothing")


@pytest.mark.parametrize("damage", [no_detector, no_trunk, another_trunk, no_safetensors])
def test_a_run_that_lacks_a_detector_leaves_the_bundle_before_it(
    damage: Callable[[Path], None], runs: dict[str, Path], info: BundleInfo, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(runs["both"], tmp_path / "run"))
    digest = export_bundle(run / "bundle", run, info)
    damage(run)
    before = set(run.iterdir())
    with pytest.raises(LvdError):
        export_bundle(run / "bundle", run, info)
    assert set(run.iterdir()) == before
    assert load_bundle(run / "bundle").digest == digest


# ---- bundles stand beside each other


def stamps(directory: Path) -> dict[str, tuple[int, int]]:
    """Which files a directory has, and when each was last written."""
    return {
        path.relative_to(directory).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in files_of(directory)
    }


def test_an_export_leaves_earlier_bundles_alone_and_points_to_its_own(
    bundle: Path, digest: str, runs: dict[str, Path], info: BundleInfo
) -> None:
    earlier = bundle.parent / "bundles" / digest[:12]
    assert bundle.readlink() == Path("bundles") / digest[:12]
    before = stamps(earlier)
    other = export_bundle(bundle, runs["networks"], info)
    assert bundle.readlink() == Path("bundles") / other[:12]
    assert load_bundle(bundle, other).detectors.trunk is None
    assert not (bundle / "trunk").exists()
    assert load_bundle(earlier, digest).digest == digest
    assert stamps(earlier) == before
    assert export_bundle(bundle, runs["both"], info) == digest  # the first one again: it is there
    assert bundle.readlink() == Path("bundles") / digest[:12]
    assert stamps(earlier) == before
    assert sorted(path.name for path in (bundle.parent / "bundles").iterdir()) == sorted(
        [digest[:12], other[:12]]
    )


def test_the_run_may_be_moved_with_its_bundles(bundle: Path, digest: str, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("bundle", "bundles"):
        (tmp_path / name).rename(moved / name)
    assert load_bundle(moved / "bundle", digest).digest == digest


@pytest.mark.parametrize("exchange", [True, False], ids=["in one move", "in two"])
@pytest.mark.parametrize("sound", [True, False], ids=["whole", "without manifest"])
def test_a_bundle_of_an_earlier_version_is_moved_and_never_deleted(
    exchange: bool,
    sound: bool,
    bundle: Path,
    digest: str,
    runs: dict[str, Path],
    info: BundleInfo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not exchange:
        monkeypatch.setattr(lvd.guard.pointer, "_exchanged", lambda *_: False)
    content = bundle.resolve()
    bundle.unlink()
    content.rename(bundle)  # as it was
    if not sound:
        (bundle / "manifest.json").unlink()
    before = stamps(bundle)
    other = export_bundle(bundle, runs["networks"], info)
    assert load_bundle(bundle, other).digest == other
    assert stamps(bundle.parent / "bundles" / (digest[:12] if sound else "without_manifest")) == before


def test_a_crash_leaves_the_old_pointer_or_the_new_one(
    bundle: Path, digest: str, runs: dict[str, Path], info: BundleInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends before each of the calls that change what stands on disk, one after the other."""
    info = replace(info, rule=Vote(1, 0.25, 0.5))
    other = export_bundle(bundle.parent / "apart" / "bundle", runs["networks"], info)
    calls, last = 0, 0

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > last:
                raise KeyboardInterrupt
            return change(*arguments, **options)

        return call

    for owner, name in ((Path, "replace"), (Path, "rename"), (Path, "symlink_to"), (Path, "mkdir")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    found = []
    while True:
        calls, last = 0, last + 1
        try:
            export_bundle(bundle, runs["networks"], info)
        except KeyboardInterrupt:
            found.append(load_bundle(bundle).digest)
        else:
            break
    assert len(found) > 10
    assert set(found) == {digest}  # the pointer's own move is the last change
    assert load_bundle(bundle).digest == other
    assert sorted(p.name for p in (bundle.parent / "bundles").iterdir()) == sorted([digest[:12], other[:12]])


def test_without_links_a_file_names_the_bundle(
    bundle: Path, digest: str, runs: dict[str, Path], info: BundleInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", cannot)
    other = export_bundle(bundle, runs["networks"], info)
    assert bundle.read_text() == f"bundles/{other[:12]}\n"
    assert not bundle.is_symlink()
    assert Guard.from_pretrained(bundle, digest=other).bundle.digest == other
    assert export_bundle(bundle, runs["both"], info) == digest
    assert load_bundle(bundle).digest == digest


@pytest.mark.parametrize("text", ["bundles/../run", "/etc", "bundles/0000", "bundles/000000000000"])
def test_a_file_that_names_no_bundle_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text(text)
    with pytest.raises(LvdError, match=f"no bundle at {tmp_path}"):
        load_bundle(tmp_path / "bundle")


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to("bundle")
    with pytest.raises(LvdError, match=f"no bundle at {tmp_path}"):
        load_bundle(tmp_path / "bundle")


def test_a_bundle_that_was_changed_is_not_pointed_to_again(
    bundle: Path, runs: dict[str, Path], info: BundleInfo
) -> None:
    other = export_bundle(bundle, runs["networks"], info)
    first = next(path for path in (bundle.parent / "bundles").iterdir() if path.name != other[:12])
    (first / "README.md").write_text("It catches everything.\n")
    with pytest.raises(LvdError, match=r"tampered with: README\.md was changed"):
        export_bundle(bundle, runs["both"], info)
    assert (first / "README.md").read_text() == "It catches everything.\n"
    assert load_bundle(bundle).digest == other


def test_a_file_of_the_run_that_is_not_as_it_was_written_is_not_exported(
    runs: dict[str, Path], info: BundleInfo, tmp_path: Path
) -> None:
    name = "alpha/step_01/detector/model.safetensors"
    digest = hashlib.sha256((runs["both"] / name).read_bytes()).hexdigest()
    export_bundle(tmp_path / "bundle", runs["both"], info, {name: digest})
    with pytest.raises(LvdError, match="is not the file that its job wrote"):
        export_bundle(tmp_path / "bundle", runs["both"], info, {name: "0" * 64})


# ---- what is refused


def test_a_thousand_changed_bytes_are_all_refused(
    runs: dict[str, Path], info: BundleInfo, tmp_path: Path
) -> None:
    bundle, rng = tmp_path / "bundle", random.Random(0)
    export_bundle(bundle, runs["both"], replace(info, rule=Vote(2, 0.25, 0.5)))
    files = [*files_of(bundle), *[bundle / "manifest.json"] * 3]
    for _ in range(1000):
        path = rng.choice(files)
        data = path.read_bytes()
        at, flip = rng.randrange(len(data)), rng.randrange(1, 256)
        path.write_bytes(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
        assert refused(bundle), (path, at, flip)
        path.write_bytes(data)
    load_bundle(bundle)


def test_a_file_that_is_removed_or_renamed_is_refused(bundle: Path) -> None:
    for path in files_of(bundle):
        for place in (bundle.parent / "elsewhere", path.with_name("renamed"), path.with_suffix("")):
            path.rename(place)
            assert refused(bundle), (path, place)
            place.rename(path)
    load_bundle(bundle)


def test_files_that_changed_places_are_refused(bundle: Path) -> None:
    one, other = bundle / "alpha" / "step_00", bundle / "alpha" / "step_01"
    one.rename(bundle / "between")
    other.rename(one)
    (bundle / "between").rename(other)
    assert refused(bundle)


@pytest.mark.parametrize("place", ["extra", ".hidden", "trunk/extra.safetensors", "beta/step_04/config.json"])
def test_a_file_that_was_added_is_refused(place: str, bundle: Path) -> None:
    (bundle / place).parent.mkdir(exist_ok=True)
    (bundle / place).write_bytes(b"")
    with pytest.raises(LvdError, match=f"tampered with: {place} does not belong to it"):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["manifest.json", "bundle.json", "trunk/model.safetensors", "alpha/step_00"])
def test_a_symbolic_link_in_the_place_of_a_file_is_refused(name: str, bundle: Path, tmp_path: Path) -> None:
    (bundle / name).rename(tmp_path / "target")
    (bundle / name).symlink_to(tmp_path / "target")
    with pytest.raises(LvdError, match=f"tampered with: {name} does not belong to it"):
        load_bundle(bundle)


@pytest.mark.parametrize("target", ["trunk", "bundle.json", "nowhere"])
def test_a_symbolic_link_that_was_added_is_refused(target: str, bundle: Path) -> None:
    (bundle / "link").symlink_to(target)
    with pytest.raises(LvdError, match="tampered with: link does not belong to it"):
        load_bundle(bundle)


def test_a_named_pipe_is_refused_and_not_waited_for(bundle: Path) -> None:
    pipe = bundle / "README.md"
    pipe.unlink()
    os.mkfifo(pipe)
    rescue = threading.Timer(10, lambda: pipe.open("wb").close())  # of somebody who does wait
    rescue.start()
    with pytest.raises(LvdError, match=r"README\.md does not belong to it"):
        load_bundle(bundle)
    rescue.cancel()


def test_an_empty_directory_more_or_less_is_no_matter(bundle: Path, digest: str) -> None:
    (bundle / "empty").mkdir()
    assert load_bundle(bundle, digest).digest == digest
    (bundle / "empty").rmdir()
    assert load_bundle(bundle, digest).digest == digest


def test_a_bundle_with_another_digest_is_refused(bundle: Path, digest: str) -> None:
    with pytest.raises(LvdError, match=f"has the digest {digest}, not 0000"):
        Guard.from_pretrained(bundle, digest="0" * 64)


def test_a_bundle_that_was_sealed_again_is_refused_by_its_digest(bundle: Path, digest: str) -> None:
    (bundle / "README.md").write_text("It catches everything.\n")
    reseal(bundle)
    load_bundle(bundle)
    assert refused(bundle, digest)


@pytest.mark.parametrize("place", ["nowhere", "a_file"])
def test_no_bundle_gives_one_error_message(place: str, tmp_path: Path) -> None:
    (tmp_path / "a_file").write_text("")
    with pytest.raises(LvdError, match=f"no bundle at {tmp_path / place}: "):
        Guard.from_pretrained(tmp_path / place)


def edited(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda text: json.dumps({**json.loads(text), **changes}).encode()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("bundle.json", edited(format_version=3)),
        ("bundle.json", edited(eta=5)),
        ("bundle.json", edited(surprise=1)),
        ("bundle.json", edited(category_names=["alpha", "beta", "gamma"])),
        ("bundle.json", edited(latent_shape=[4, 8])),
        ("bundle.json", lambda text: b"[]"),
        ("bundle.json", lambda text: b"\xff"),
        ("bundle.json", None),
        ("trunk/config.json", None),
        ("alpha/step_00/config.json", None),
        ("alpha/step_00/config.json", edited(kind="pickle")),
        ("alpha/step_00/config.json", edited(trunk_sha256="0" * 64)),
        ("beta/step_01/config.json", lambda text: b"{"),
        ("beta/step_01/model.safetensors", lambda weights: weights[:-1]),
    ],
)
def test_a_sealed_directory_that_is_no_bundle_is_refused(
    name: str, change: Callable[[bytes], bytes] | None, bundle: Path
) -> None:
    if change is None:
        (bundle / name).unlink()
    else:
        (bundle / name).write_bytes(change((bundle / name).read_bytes()))
    reseal(bundle)
    assert refused(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + b"\n",
        lambda text: text.replace(b": ", b":"),
        lambda text: text.replace(b'{\n "files"', b'{\n "files": {}, "files"'),
    ],
    ids=["newline", "spaces", "twice"],
)
def test_a_manifest_that_says_the_same_in_other_bytes_is_refused(
    change: Callable[[bytes], bytes], bundle: Path
) -> None:
    path = bundle / "manifest.json"
    text = path.read_bytes()
    path.write_bytes(change(text))
    assert json.loads(path.read_bytes()) == json.loads(text)
    assert path.read_bytes() != text
    with pytest.raises(LvdError, match=r"manifest\.json was changed"):
        load_bundle(bundle)


# ---- nothing of it is ever executed


class Canary:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["trunk/model.safetensors", "alpha/step_00/model.safetensors", "extra.pkl"])
@pytest.mark.parametrize("zipped", [False, True], ids=["pickle", "torch.save"])
def test_a_pickle_is_refused_and_never_loaded(place: str, zipped: bool, bundle: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    if zipped:
        torch.save(Canary(canary), bundle / place)
        torch.load(io.BytesIO((bundle / place).read_bytes()), weights_only=False)
    else:
        (bundle / place).write_bytes(pickle.dumps(Canary(canary)))
        pickle.loads((bundle / place).read_bytes())
    canary.unlink()  # it works
    reseal(bundle)
    assert refused(bundle)
    assert not canary.exists()


def test_loading_and_guarding_unpickle_nothing(
    bundle: Path, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        pytest.fail("something was unpickled")

    for owner, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(owner, name, fail)
    result = Guard.from_pretrained(bundle, digest=digest)(pipeline(), prompt="one")
    assert result.decisions[0].outcome in ("unsafe", "safe")
