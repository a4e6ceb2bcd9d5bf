"""Whatever happens to a capture's bytes, reading it against its manifest finds it, and names what it hit."""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import pytest

from conftest import SHAPE, of_version_1, write_capture
from lvd.errors import LvdError
from lvd.latents import writer
from lvd.latents.format import read_info, read_samples
from lvd.latents.manifest import read_manifest, write_manifest
from lvd.latents.verify import Finding, verify
from support.commands import Shell

COUNT = 5
SAMPLE_BYTES = 2 * SHAPE[0] * SHAPE[1] * SHAPE[2] * SHAPE[3]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """5 samples at 3 steps, in shards of 3 and 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SHARD_BYTES", 3 * SAMPLE_BYTES)
        yield write_capture(tmp_path_factory.mktemp("whole") / "tiny", COUNT)


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell("capture.py", tmp_path, monkeypatch, capfd)


def found(capture: Path) -> dict[str, tuple[str, ...]]:
    return {finding.path: finding.sample_ids for finding in verify(capture)}


def test_a_capture_as_it_was_written_has_nothing_wrong(whole: Path) -> None:
    assert verify(whole) == []


def x0_offset(path: Path) -> int:
    with h5py.File(path) as file:
        return int(file["x0"].id.get_offset())


@pytest.mark.parametrize("faults", [100, pytest.param(1_000, marks=pytest.mark.long)])
def test_every_fault_is_found_and_its_file_and_sample_named(copied: Path, faults: int) -> None:
    """Bit flips and truncations, anywhere in anything that the capture consists of."""
    ids = [sample.sample_id for sample in read_samples(copied)]
    shards = {copied / shard.path: shard for shard in read_manifest(copied).shards}
    files = [*shards, *(copied / name for name in ("manifest.json", "capture.json", "samples.csv"))]
    rng = random.Random(0)
    kinds = {"flip in x0": 0, "flip elsewhere": 0, "truncation": 0}
    for _ in range(faults):
        path = rng.choice(files)
        content = path.read_bytes()
        place = rng.randrange(len(content))
        in_x0 = path in shards and 0 <= place - x0_offset(path) < shards[path].count * SAMPLE_BYTES
        if rng.random() < 0.5:
            kind = "truncation"
            path.write_bytes(content[:place])
        else:
            kind = "flip in x0" if in_x0 else "flip elsewhere"
            flipped = bytearray(content)
            flipped[place] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
        kinds[kind] += 1
        try:
            findings = found(copied)
        except LvdError:  # without a manifest there is nothing to read against
            assert path.name == "manifest.json"
        else:
            assert path.name == "manifest.json" or str(path.relative_to(copied)) in findings
            if kind == "flip in x0":
                first = 3 * int(path.stem.removeprefix("shard_"))
                hit = ids[first + (place - x0_offset(path)) // SAMPLE_BYTES]
                assert findings == {str(path.relative_to(copied)): (hit,)}
        path.write_bytes(content)
    assert sum(kinds.values()) == faults
    assert min(kinds.values()) > faults / 10
    assert verify(copied) == []


def test_a_missing_file_is_named(copied: Path) -> None:
    (copied / "step_01" / "shard_0001.h5").unlink()
    (copied / "samples.csv").unlink()
    assert {"step_01/shard_0001.h5", "samples.csv"} <= set(found(copied))


def test_a_step_that_the_manifest_does_not_list_is_missed(copied: Path) -> None:
    manifest = read_manifest(copied)
    write_manifest(copied, replace(manifest, shards=[s for s in manifest.shards if s.step != 1]))
    (finding,) = verify(copied)
    assert str(finding) == "manifest.json: lists 0 samples of step 1, expected 5"


def test_a_manifest_of_before_there_were_digests_is_said_to_have_none(copied: Path) -> None:
    write_manifest(copied, replace(read_manifest(copied), files={}))
    assert set(found(copied)) == {"capture.json", "samples.csv"}
    writer.relabel(copied, read_samples(copied))
    assert verify(copied) == []


def test_a_finding_names_its_samples() -> None:
    finding = Finding("step_00/shard_0000.h5", "its content was changed", ("a", "b"))
    assert str(finding) == "step_00/shard_0000.h5: its content was changed; samples: a, b"


# Labels change a capture's files, and its manifest with them


def relabelled(capture: Path) -> None:
    """Its first labels: everything is alpha."""
    samples = [replace(sample, categories=("alpha",)) for sample in read_samples(capture)]
    writer.relabel(capture, samples)


@pytest.mark.parametrize("writes", range(5))
def test_labelling_stopped_at_any_moment_leaves_a_whole_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    capture = write_capture(tmp_path / "tiny", COUNT, labelled=False)
    of_version_1(capture, labelled=False)  # so that both files change
    before = {name: (capture / name).read_bytes() for name in ("samples.csv", "capture.json")}
    replace_file, made = Path.replace, []

    def stop(path: Path, target: Path) -> Path:
        if len(made) == writes:
            raise KeyboardInterrupt
        made.append(target.name)
        return replace_file(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        if writes < 4:
            with pytest.raises(KeyboardInterrupt):
                relabelled(capture)
        else:
            relabelled(capture)
    assert made == ["manifest.json", "samples.csv", "capture.json", "manifest.json"][:writes]
    assert verify(capture) == []
    changed = {name for name, content in before.items() if (capture / name).read_bytes() != content}
    assert changed == set(made) - {"manifest.json"}
    read_info(capture)
    assert {sample.is_labelled for sample in read_samples(capture)} == {writes >= 2}
    relabelled(capture)
    assert verify(capture) == []
    assert all(len(digests) == 1 for digests in read_manifest(capture).files.values())


def test_changed_files_are_not_made_good_by_labels(copied: Path) -> None:
    path = copied / "samples.csv"
    path.write_text(path.read_text().replace("prompt number 3", "prompt number 4"))
    with pytest.raises(LvdError, match=r"samples.csv is not the file that manifest.json knows: put it back"):
        relabelled(copied)
    assert set(found(copied)) == {"samples.csv"}


# The command


def test_the_command_says_that_all_is_well(command: Shell, whole: Path) -> None:
    shutil.copytree(whole, command.directory / "captures" / "tiny")
    ran = command("name=tiny", "verify=true")
    assert (ran.code, ran.out) == (0, ran.out)
    assert "capture captures/tiny is as it was written: 6 shards" in ran.out


def test_the_command_names_every_bad_file_and_ends_with_1(command: Shell, whole: Path) -> None:
    capture = Path(shutil.copytree(whole, command.directory / "captures" / "tiny"))
    for name in ("step_00/shard_0000.h5", "step_02/shard_0001.h5"):
        content = bytearray((capture / name).read_bytes())
        content[x0_offset(capture / name)] ^= 1
        (capture / name).write_bytes(content)
    ran = command("name=tiny", "verify=true")
    assert ran.code == 1
    assert ran.out.splitlines() == [
        "step_00/shard_0000.h5: its content was changed; samples: s000",
        "step_02/shard_0001.h5: its content was changed; samples: s003",
    ]
    assert "capture captures/tiny is damaged: 2 bad files, 2 samples in doubt" in ran.err


def test_a_manifest_is_written_in_one_way_only(copied: Path) -> None:
    path = copied / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert found(copied) == {"manifest.json": ()}
