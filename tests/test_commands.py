"""What a person sees who types a command and nothing else."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import Shell

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("command", ["capture.py", "train.py", "evaluate.py"])
def test_help_shows_examples_of_this_program(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ran = Shell(command, tmp_path, monkeypatch, capfd)("--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count(f"python {command}") >= 2
    assert "Settings, with their present values" in ran.out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train.py --cfg job -m category=0..1 step=0..2", "-m and --cfg do not go together"),
        ("capture.py --multirun -c all prompts=x.csv", "-m and --cfg do not go together"),
        ("evaluate.py --info -m", "-m and --info do not go together"),
        ("train.py --resolve category=0 step=0", "--resolve goes with --cfg"),
        ("evaluate.py --resolve", "--resolve goes with --cfg"),
        ("train.py --cfg hydra --resolve", "use --cfg all --resolve"),
        ("train.py --cfg all --resolve", "category and step say which job's directory"),
        ("train.py categoy=0 step=0", "there is no setting categoy: did you mean category?"),
        ("capture.py pipline=demo", "there is no setting pipline: did you mean pipeline?"),
        ("capture.py pipeline=animatedif", "did you mean pipeline=animatediff"),
        ("evaluate.py etaa=3", "there is no setting etaa: did you mean eta?"),
        ("evaluate.py lam 0.5", "a setting is written key=value"),
    ],
)
def test_a_command_line_that_cannot_be_is_answered_with_one_error_message(
    line: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script, *arguments = line.split()
    ran = Shell(script, tmp_path, monkeypatch, capfd)(*arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1), ran.err
    assert words in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "capture.py --cfg all --resolve",
        "train.py --cfg all --resolve task=trunk",
        "evaluate.py --cfg job --resolve",
    ],
)
def test_the_whole_configuration_is_shown(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script, *arguments = line.split()
    ran = Shell(script, tmp_path, monkeypatch, capfd)(*arguments)
    assert (ran.code, ran.err) == (0, "")
    assert "captures: captures" in ran.out


def test_flags_stand_anywhere(train: Shell, captured: Path) -> None:
    ran = train("category=0..1", "-m", "name=tiny", "plan=true", "step=0..2")
    assert (ran.code, ran.err) == (0, "")
    assert "6 jobs" in ran.out


def test_a_capture_or_an_evaluation_that_cannot_be_written_gives_one_error_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    ran = Shell("capture.py", tmp_path, monkeypatch, capfd)("prompts=p.txt", "name=x", "captures=file")
    assert (ran.code, ran.err.count("\n")) == (1, 1), ran.err
    assert "nothing can be written to file/x" in ran.err

    def refused(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "runs/x/evaluation/scores.csv")

    monkeypatch.setattr("lvd.evaluation.run.evaluate_runs", refused)
    ran = Shell("evaluate.py", tmp_path, monkeypatch, capfd)("name=x")
    assert (ran.code, ran.err.count("\n")) == (1, 1), ran.err
    assert "nothing can be written to runs/x (runs/x/evaluation/scores.csv: Permission denied)" in ran.err


def test_a_file_that_cannot_be_read_gives_one_error_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "captures" / "x" / "capture.json").mkdir(parents=True)
    for script, arguments in (
        ("train.py", ["category=0", "step=0"]),
        ("evaluate.py", []),
        ("capture.py", ["verify=true"]),
    ):
        ran = Shell(script, tmp_path, monkeypatch, capfd)("name=x", *arguments)
        assert (ran.code, ran.err.count("\n")) == (1, 1), ran.err
        assert "captures/x" in ran.err


@pytest.mark.parametrize("stream", [">&-", "2>&-"])
def test_a_command_whose_output_is_closed_ends_as_ever(stream: str) -> None:
    command = f"{sys.executable} -m lvd.guard.table {stream}"
    assert subprocess.run(command, shell=True, cwd=ROOT, stderr=subprocess.DEVNULL).returncode == 0


def unread_pipe() -> int:
    """A pipe's end to write to; nobody reads, as when `head` has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(
    "line",
    [
        "lvd.guard.table --sources",
        "lvd.guard.audit --help",
        "train.py -m category=0..4 step=0..49 capture=wide name=mine plan=true",
        "capture.py name=wide verify=true",
        "evaluate.py --cfg all",
        "evaluate.py --help",
        "benchmarks/rules.py --help",
    ],
)
def test_a_command_whose_reader_has_read_enough_ends_in_silence(
    line: str, wide: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script, *arguments = line.split()
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    before, unread = os.dup(1), unread_pipe()
    os.dup2(unread, 1)
    try:
        with os.fdopen(1, "w", closefd=False) as out, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", out)
            code, _, err = Shell(script, wide, patched, capfd)(*arguments)
    finally:
        os.dup2(before, 1)
        os.close(before)
        os.close(unread)
    assert code in (1, 141)  # rich ends a command so by itself, with 1
    assert "rror" not in err  # progress may be there


def test_an_interpreter_whose_output_nobody_reads_ends_in_silence_too() -> None:
    unread = unread_pipe()
    command = [sys.executable, "-m", "lvd.guard.table"]
    ended = subprocess.run(command, cwd=ROOT, stdout=unread, stderr=subprocess.PIPE, text=True)
    os.close(unread)
    assert (ended.returncode, ended.stderr) == (141, "")
