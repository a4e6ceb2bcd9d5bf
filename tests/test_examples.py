"""The scripts of examples/ do what their first lines say; the third, few_steps.py: guard/test_session.py."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import bundle_info, untrained_run
from lvd.guard.audit import verify
from lvd.guard.export import export_bundle
from support.commands import ROOT

FROZEN = Path(__file__).parent / "frozen" / "version_2"


def run(script: str, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")


def test_a_pipeline_is_guarded(
    tiny_pipeline: Any,
    tiny_pipeline_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    info = bundle_info(tiny_pipeline, threshold=0.999)
    digest = export_bundle(tmp_path / "bundle", untrained_run(tmp_path / "run", lambda *_: "head"), info)
    log = tmp_path / "audit.jsonl"
    arguments = ["--pipeline", tiny_pipeline_path, "--prompt", "a", "b", "--videos", tmp_path]
    run("guard_pipeline.py", monkeypatch, tmp_path / "bundle", "--digest", digest, "--audit", log, *arguments)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["a", "b"]
    for row, line in enumerate(lines):
        path = tmp_path / f"video_{row}.webp"
        assert line.endswith(str(path) if path.is_file() else "withheld")
    assert verify(log)[0] == 2
    with pytest.raises(SystemExit, match=r"^error: bundle .* has the digest"):
        run("guard_pipeline.py", monkeypatch, tmp_path / "bundle", "--digest", "0" * 64, *arguments)


def test_a_capture_is_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("read_capture.py", monkeypatch, FROZEN / "captures" / "frozen")
    first, *steps = capsys.readouterr().out.splitlines()
    assert first == "60 samples, x0 [2, 2, 4, 4], steps 0..2"
    assert [line.split(":")[0] for line in steps] == ["step 00", "step 01", "step 02"]
    assert steps[-1].endswith("safe 0.000, unsafe 0.000")
    with pytest.raises(SystemExit, match=r"^error: no capture at "):
        run("read_capture.py", monkeypatch, FROZEN / "captures" / "other")
