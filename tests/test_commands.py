"""What a person sees who types a command and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("command", ["capture.py", "train.py", "evaluate.py"])
def test_help_shows_examples_of_this_program(command: str) -> None:
    shown = subprocess.run(
        [sys.executable, command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert shown.count(f"python {command}") >= 2
    assert "Settings, with their present values" in shown


def test_shipped_prompts_are_every_scene_once(tmp_path: Path) -> None:
    from lvd.demo.digits import write_prompts

    write_prompts(tmp_path / "prompts.csv")
    shipped = (ROOT / "lvd/demo/prompts.csv").read_bytes()
    assert (tmp_path / "prompts.csv").read_bytes() == shipped
    assert len(set(shipped.decode().splitlines())) == 561
