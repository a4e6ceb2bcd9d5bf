"""The log holds every decision before a video is out, and what was done to it afterwards shows."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import UserDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import StubPipeline, stub_guard
from lvd.errors import LvdError
from lvd.guard import AuditLog
from lvd.guard import audit as audit_module
from lvd.guard.audit import GENESIS, verify
from support.commands import Shell

ROOT = Path(__file__).parents[2]
DECISION = {
    "outcome": "safe",
    "step": 3,
    "categories": ["alpha"],
    "why": "",
    "seconds": 0.5,
    "released": True,
}
Lines = list[bytes]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def whole(path: Path) -> Path:
    """A log of five records, appended by three calls."""
    log = AuditLog(path, prompts=True)
    for first, count in ((0, 2), (2, 1), (3, 2)):
        log.append("b" * 64, [(f"prompt {n}", DECISION) for n in range(first, first + count)])
    return path


def lines_of(path: Path) -> Lines:
    return path.read_bytes().splitlines(keepends=True)


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(path)]


def sealed(record: dict[str, Any]) -> bytes:
    """A record with the digest that it should have, as somebody writes it who knows how."""
    content = {key: value for key, value in record.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "digest": digest}).encode() + b"\n"


def complaint(path: Path, head: str | None = None) -> str:
    with pytest.raises(LvdError) as error:
        verify(path, head)
    return str(error.value)


# ---- an unbroken log


def test_a_log_that_nobody_touched_verifies(whole: Path) -> None:
    records = records_of(whole)
    assert verify(whole) == (5, records[-1]["digest"])
    assert verify(whole, head=records[-1]["digest"]) == (5, records[-1]["digest"])
    assert verify(whole, head=records[2]["digest"])[0] == 5  # known from earlier: it went on since
    assert [record["number"] for record in records] == [1, 2, 3, 4, 5]
    assert [record["previous"] for record in records] == [GENESIS, *[r["digest"] for r in records[:-1]]]
    assert lines_of(whole) == [sealed(record) for record in records]


def test_append_returns_the_head(path: Path) -> None:
    for _ in range(3):
        head = AuditLog(path).append("b", [("one", DECISION), ("two", DECISION)])
        assert verify(path)[1] == head


def test_an_empty_log_is_whole(path: Path) -> None:
    path.touch()
    assert verify(path) == (0, GENESIS)
    assert AuditLog(path).append("b", []) == GENESIS


def test_prompts_are_stored_only_when_asked_for(path: Path, tmp_path: Path) -> None:
    prompt = "ein Stück, 星, \ud800"  # the last is half a character
    AuditLog(path).append("b", [(prompt, DECISION)])
    AuditLog(tmp_path / "asked", prompts=True).append("b", [(prompt, DECISION)])
    digest = hashlib.sha256(prompt.encode(errors="surrogatepass")).hexdigest()
    (record,), (asked,) = records_of(path), records_of(tmp_path / "asked")
    assert "prompt" not in record
    assert b"ein St" not in path.read_bytes()
    assert record["prompt_sha256"] == asked["prompt_sha256"] == digest
    assert asked["prompt"] == prompt
    assert verify(tmp_path / "asked")[0] == 1


def test_records_longer_than_a_block_are_chained(path: Path) -> None:
    log = AuditLog(path, prompts=True)
    for length in (10, 65_536, 200_000, 65_400, 10):
        log.append("b", [("x" * length, DECISION)])
    assert verify(path)[0] == 5


def test_what_append_returns_for_is_on_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (fsync(file), synced.append(path.stat().st_size)))
    AuditLog(path).append("b", [("one", DECISION)])
    assert synced == [path.stat().st_size]


# ---- what was done to it


def every_edit() -> list[tuple[int, str]]:
    fields = ["number", "time", "bundle", "prompt_sha256", "prompt", *DECISION, "previous", "digest"]
    return [(number, field) for number in range(1, 6) for field in fields]


def another(value: Any) -> Any:
    """A value that is not this one, of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value}x" if value[:1] != "0" else f"1{value[1:]}"
    return [*value, "beta"] if isinstance(value, list) else value + 1


def test_an_edit_of_any_field_of_any_record_is_found_there(whole: Path) -> None:
    original, records = lines_of(whole), records_of(whole)
    assert {field for _, field in every_edit()} == set(records[0])
    for number, field in every_edit():
        record = records[number - 1]
        lines = original.copy()
        lines[number - 1] = json.dumps({**record, field: another(record[field])}).encode() + b"\n"
        whole.write_bytes(b"".join(lines))
        assert f"line {number}: record" in complaint(whole), field
        assert "was edited" in complaint(whole)


def test_an_edit_with_the_right_digest_breaks_the_chain_after_it(whole: Path) -> None:
    original, records = lines_of(whole), records_of(whole)
    for number in range(1, 5):
        lines = original.copy()
        lines[number - 1] = sealed({**records[number - 1], "outcome": "unsafe"})
        whole.write_bytes(b"".join(lines))
        assert f"line {number}: record {number} was edited or replaced" in complaint(whole)


def test_a_last_record_with_the_right_digest_is_found_by_the_head_alone(whole: Path) -> None:
    lines, records = lines_of(whole), records_of(whole)
    whole.write_bytes(b"".join([*lines[:-1], sealed({**records[-1], "outcome": "unsafe"})]))
    assert verify(whole)[0] == 5
    assert "is missing: the tail was cut off" in complaint(whole, head=records[-1]["digest"])


def test_a_log_whose_beginning_was_replaced_is_broken_at_its_first_record(whole: Path) -> None:
    (first, *_) = records_of(whole)
    whole.write_bytes(sealed({**first, "previous": "1" * 64}))
    assert "line 1: record 1 was edited or replaced" in complaint(whole)


@pytest.mark.parametrize("removed", range(1, 5))
def test_a_removed_record_is_named(removed: int, whole: Path) -> None:
    lines = lines_of(whole)
    whole.write_bytes(b"".join(lines[: removed - 1] + lines[removed:]))
    assert f"record {removed} was removed or moved: record {removed + 1} stands in its place" in complaint(
        whole
    )


def test_a_record_removed_with_new_numbers_after_it_breaks_the_chain(whole: Path) -> None:
    lines, records = lines_of(whole), records_of(whole)
    renumbered = [sealed({**record, "number": record["number"] - 1}) for record in records[3:]]
    whole.write_bytes(b"".join([*lines[:2], *renumbered]))
    assert "line 2: record 2 was edited or replaced" in complaint(whole)


@pytest.mark.parametrize(("one", "other"), [(1, 2), (1, 5), (2, 4), (4, 5)])
def test_swapped_records_are_named_at_the_first(one: int, other: int, whole: Path) -> None:
    lines = lines_of(whole)
    lines[one - 1], lines[other - 1] = lines[other - 1], lines[one - 1]
    whole.write_bytes(b"".join(lines))
    assert f"line {one}: record {one} was removed or moved: record {other} stands" in complaint(whole)


@pytest.mark.parametrize("twice", range(1, 6))
def test_a_duplicated_record_is_found(twice: int, whole: Path) -> None:
    lines = lines_of(whole)
    whole.write_bytes(b"".join(lines[:twice] + lines[twice - 1 :]))
    assert f"line {twice + 1}: record {twice + 1} was removed or moved" in complaint(whole)


def test_a_tail_that_was_cut_off_is_found_by_the_head_alone(whole: Path) -> None:
    lines, head = lines_of(whole), records_of(whole)[-1]["digest"]
    for left in range(5):
        whole.write_bytes(b"".join(lines[:left]))
        assert verify(whole)[0] == left
        assert f"the record with the digest {head} is missing" in complaint(whole, head)


def test_every_changed_byte_is_found(path: Path) -> None:
    AuditLog(path, prompts=True).append("b", [("one", DECISION), ("two", DECISION)])
    data, rng = path.read_bytes(), random.Random(0)
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :])
        with pytest.raises(LvdError):
            verify(path)


def test_a_field_that_is_there_twice_is_an_edit(whole: Path) -> None:
    (first, *rest) = lines_of(whole)
    whole.write_bytes(b"".join([b'{"outcome": "unsafe", ' + first[1:], *rest]))
    assert "line 1: record 1 was edited" in complaint(whole)


@pytest.mark.parametrize(
    "line", [b"\n", b"{}\n", b"[]\n", b'["number", "previous", "digest"]\n', b"\xff\n", b"[" * 100_000]
)
def test_a_line_that_is_no_record_is_named_and_nothing_is_appended_to_it(line: bytes, whole: Path) -> None:
    broken = whole.read_bytes() + line
    whole.write_bytes(broken)
    assert "line 6 is not a record: it was edited or cut" in complaint(whole)
    if line.endswith(b"\n"):
        with pytest.raises(LvdError, match="the last line is not a record"):
            AuditLog(whole).append("b", [("one", DECISION)])
        assert whole.read_bytes() == broken


def test_nothing_is_appended_to_a_last_record_that_was_edited(whole: Path) -> None:
    edited = whole.read_bytes().replace(b'"prompt 4"', b'"prompt 9"')
    whole.write_bytes(edited)
    with pytest.raises(LvdError, match="its last record was edited"):
        AuditLog(whole).append("b", [("one", DECISION)])
    assert whole.read_bytes() == edited


# ---- crashes and neighbours


def test_a_line_that_was_torn_is_dropped_and_the_chain_stays_whole(whole: Path) -> None:
    data, last = whole.read_bytes(), lines_of(whole)[-1]
    for cut in range(1, len(last), 11):
        whole.write_bytes(data[:-cut])
        assert "line 5" in complaint(whole)
        AuditLog(whole).append("b", [("instead", DECISION)])
        assert verify(whole)[0] == 5
        assert lines_of(whole)[:-1] == data.splitlines(keepends=True)[:-1]


@pytest.mark.parametrize("length", [0, 65_000, 200_000])
def test_a_torn_line_is_dropped_however_long_the_record_before_it(length: int, path: Path) -> None:
    log = AuditLog(path, prompts=True)
    for _ in range(2):
        log.append("b", [("x" * length, DECISION)])
    with path.open("ab") as file:
        file.write(b'{"number": 3, "prompt": "' + b"x" * length)
    log.append("b", [("one", DECISION)])
    assert verify(path)[0] == 3


def test_a_first_line_that_was_torn_is_dropped(path: Path) -> None:
    path.write_bytes(b'{"number": 1, "ti')
    AuditLog(path).append("b", [("one", DECISION)])
    assert verify(path)[0] == 1


class Slow(UserDict[str, Any]):
    """A decision that takes its time to be read: others may come between."""

    def __getitem__(self, key: str) -> Any:
        time.sleep(0.0001)
        return super().__getitem__(key)


@pytest.mark.parametrize("locks", [True, False], ids=["with file locks", "without"])
def test_threads_make_one_chain(locks: bool, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not locks:
        monkeypatch.setattr(audit_module, "fcntl", None)
    log = AuditLog(path)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: log.append("b", [(f"{n}", Slow(DECISION))] * 2), range(20)))
    assert verify(path)[0] == 40


APPENDER = """
import sys, time
from collections import UserDict
from lvd.guard import audit

class Slow(UserDict):
    def __getitem__(self, key):
        time.sleep(0.001)  # others may come between
        return super().__getitem__(key)

log, prompt = audit.AuditLog(sys.argv[1], prompts=True), sys.argv[2] * int(sys.argv[3])
print("ready", flush=True)
for line in sys.stdin:
    print(log.append("b", [(prompt, Slow(outcome="safe"))] * 2), flush=True)
"""


def appender(path: Path, name: str, repeats: int = 1) -> subprocess.Popen[str]:
    """A process that appends two records for every line that it is given, and prints the new head."""
    process = subprocess.Popen(
        [sys.executable, "-c", APPENDER, path, name, str(repeats)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_make_one_chain(path: Path) -> None:
    both = [appender(path, name) for name in ("one", "two")]
    for process in both:
        process.stdin.write("\n" * 20)
        process.stdin.flush()
    heads = [process.communicate()[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert verify(path)[0] == 80
    records = records_of(path)
    assert {record["digest"] for record in records[1::2]} == {head for of_one in heads for head in of_one}
    assert [r["prompt"] for r in records[::2]] == [
        r["prompt"] for r in records[1::2]
    ]  # a call's stay together


def test_a_process_that_was_killed_leaves_a_log_that_goes_on(path: Path) -> None:
    count, head = 0, GENESIS
    for attempt in range(3):
        process = appender(path, "x", repeats=1_000_000)
        process.stdin.write("\n" * 500)
        process.stdin.flush()
        for _ in range(attempt + 1):
            head = process.stdout.readline().strip()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        AuditLog(path).append("b", [("after", DECISION)])
        told, _ = verify(path, head)  # all that it had acknowledged is there
        assert told >= count + 2 * (attempt + 1) + 1
        count = told


# ---- the command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell("lvd.guard.audit", tmp_path, monkeypatch, capfd)


def test_the_command_tells_the_head_of_an_unbroken_log(command: Any, whole: Path) -> None:
    head = records_of(whole)[-1]["digest"]
    told = f"5 records, unbroken; head {head}\n"
    assert command(whole) == (0, told, "")
    assert command(whole, "--head", head) == (0, told, "")


def test_the_command_fails_with_one_error_message(command: Any, whole: Path, tmp_path: Path) -> None:
    head = records_of(whole)[-1]["digest"]
    lines = lines_of(whole)
    whole.write_bytes(b"".join(lines[:-1]))
    code, out, err = command(whole, "--head", head)
    assert (code, out) == (1, "")
    assert err == f"error: {whole}: the record with the digest {head} is missing: the tail was cut off\n"

    whole.write_bytes(b"".join(lines[1:]))
    assert command(whole)[0] == 1
    code, out, err = command(tmp_path / "nowhere")
    assert (code, out) == (1, "")
    assert err == f"error: audit log {tmp_path / 'nowhere'} cannot be read: No such file or directory\n"


def test_the_command_is_a_module_that_does_not_wait_for_torch(whole: Path) -> None:
    whole.write_bytes(b"".join(lines_of(whole)[1:]))
    command = [sys.executable, "-X", "importtime", "-m", "lvd.guard.audit", whole]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = ran.stderr.splitlines()
    imported = {line.split("|")[-1].strip() for line in lines if line.startswith("import time:")}
    assert (ran.returncode, ran.stdout) == (1, "")
    assert [line for line in lines if not line.startswith("import time:")] == [
        f"error: {whole} line 1: record 1 was removed or moved: record 2 stands in its place"
    ]
    assert "hashlib" in imported
    assert "torch" not in imported


# ---- a guard and its log


def flags(*rows: bool) -> np.ndarray:
    return np.array([[flag] * 6 for flag in rows])


def test_every_decision_is_in_the_log(path: Path) -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, flags(False, True, True, True), audit=AuditLog(path, prompts=True))
    result = guard(pipe, prompt=["one", "two"], num_videos_per_prompt=2)
    records = records_of(path)
    assert [record["prompt"] for record in records] == ["one", "one", "two", "two"]
    assert [record["outcome"] for record in records] == ["safe", "unsafe", "unsafe", "unsafe"]
    for record, decision in zip(records, result.decisions, strict=True):
        assert record["bundle"] == guard.bundle.digest
        assert {key: record[key] for key in vars(decision)} == json.loads(json.dumps(vars(decision)))
    assert verify(path)[0] == 4


def test_a_call_that_was_stopped_is_in_the_log(path: Path) -> None:
    pipe = StubPipeline()
    stub_guard(pipe, flags(True), audit=AuditLog(path))(pipe, prompt="one")
    (record,) = records_of(path)
    assert (record["outcome"], record["released"]) == ("unsafe", False)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("options", [{}, {"mode": "observe"}, {"fail_open": True}], ids=str)
def test_what_the_pipeline_raises_goes_through_and_is_logged_as_unchecked(
    error: BaseException, options: dict[str, Any], path: Path
) -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, flags(False, True), {"lam": 1.0}, audit=AuditLog(path), **options)

    def fail(step: int, latents: Any) -> Any:
        if step == 5:
            raise error
        return latents

    pipe.disturb = fail
    with pytest.raises(type(error)) as raised:
        guard(pipe, prompt=["one", "two"])
    assert raised.value is error
    safe, unsafe = records_of(path)
    name = type(error).__name__
    assert (safe["outcome"], safe["why"]) == ("unchecked", f"the pipeline raised {name}")
    assert unsafe["outcome"] == "unsafe"
    assert not safe["released"]
    assert not unsafe["released"]


def test_a_pipeline_that_raises_before_its_first_step_has_no_step(path: Path) -> None:
    pipe = StubPipeline()
    pipe.order = lambda timesteps: 1 / 0
    with pytest.raises(ZeroDivisionError):
        stub_guard(pipe, flags(False), audit=AuditLog(path))(pipe, prompt="one")
    (record,) = records_of(path)
    assert (record["outcome"], record["step"]) == ("unchecked", None)


@pytest.mark.parametrize("options", [{}, {"fail_open": True}], ids=str)
@pytest.mark.parametrize("place", [".", "no/such/folder/audit.jsonl", "/dev/full"])
def test_without_a_log_there_are_no_videos(place: str, options: dict[str, Any], tmp_path: Path) -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, flags(False), audit=AuditLog(tmp_path / place), **options)
    with pytest.raises(LvdError, match=r"audit log .* cannot be written: "):
        guard(pipe, prompt="one")
    assert "step" not in vars(pipe.scheduler)


def test_the_log_is_written_before_the_videos_are_handed_out(path: Path) -> None:
    taken: list[int] = []

    class Video:
        def copy(self) -> "Video":
            taken.append(verify(path)[0])
            return self

    class Pipe(StubPipeline):
        def __call__(self, *given: Any, **others: Any) -> Any:
            super().__call__(*given, **others)
            return ([Video()],)

    pipe = Pipe()
    guard = stub_guard(pipe, flags(False), audit=AuditLog(path))
    (video,) = guard(pipe, prompt="one").videos
    assert isinstance(video, Video)
    assert taken == [1]
