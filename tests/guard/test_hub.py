"""Bundles travel: pushed to a stand-in of the Hub, fetched, and refused when anything is not as it was."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from lvd.errors import LvdError
from lvd.guard import Guard
from lvd.guard.push import push_bundle
from support.commands import ROOT
from support.hub import Hub

NAME = "org/mine"


@pytest.fixture
def bundle(exported: Path) -> Path:
    return exported / "bundle"


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()


def test_the_command_pushes_privately_and_prints_what_to_pin(bundle: Path, hub: Hub, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        **{"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"},
        **{"HF_HUB_OFFLINE": "0"},
        **{"PYTHONPATH": str(ROOT), "HF_TOKEN": "hf_of_nobody"},
    }
    push = [sys.executable, "-m", "lvd.guard.push", str(bundle), NAME]
    ran = subprocess.run(push, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    revision, digest, call = ran.stdout.splitlines()
    assert hub[NAME].private
    guard = eval(call, {"Guard": Guard})
    assert f"digest {guard.bundle.digest}" == digest
    assert f"revision {hub[NAME].commits[-1][0]}" == revision


def test_what_is_pushed_is_the_bundle_and_nothing_else(bundle: Path, exported: Path, hub: Hub) -> None:
    first, digest = push_bundle(bundle, NAME)
    own = {
        path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()
    }
    files = dict(hub[NAME].commits[-1][1])
    assert files.pop(".gitattributes")
    assert files == own
    second, other = push_bundle(exported / "other" / "bundle", NAME)
    assert (first, digest) != (second, other)
    assert "trunk/config.json" not in hub[NAME].commits[-1][1]  # a file of the first alone
    assert Guard.from_pretrained(NAME, digest=other).bundle.digest == other
    assert Guard.from_pretrained(NAME, revision=first, digest=digest).bundle.digest == digest
    with pytest.raises(LvdError, match=f"has the digest {other}, not {digest}"):
        Guard.from_pretrained(NAME, digest=digest)
    assert push_bundle(exported / "other" / "bundle", NAME) == (second, other)  # nothing new, no commit


def test_a_guard_from_the_hub_is_the_guard_from_its_directory(bundle: Path, hub: Hub) -> None:
    _, digest = push_bundle(bundle, NAME)
    loaded, local = Guard.from_pretrained(NAME, digest=digest), Guard.from_pretrained(bundle, digest=digest)
    assert loaded.bundle.info == local.bundle.info
    x0 = torch.randn(2, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    assert torch.equal(loaded.bundle.detectors(0, x0), local.bundle.detectors(0, x0))


def test_a_directory_of_that_name_goes_first(bundle: Path, exported: Path, hub: Hub, tmp_path: Path) -> None:
    _, digest = push_bundle(bundle, NAME)
    shutil.copytree(exported / "other" / "bundle", tmp_path / NAME)
    hub.asked.clear()
    assert Guard.from_pretrained(NAME).bundle.digest != digest
    assert hub.asked == []
    with pytest.raises(LvdError, match="has no revision v1"):
        Guard.from_pretrained(NAME, revision="v1")


def test_a_path_is_never_looked_for_on_the_hub(hub: Hub) -> None:
    for path in (Path(NAME), "runs/mine/bundle", f"/{NAME}", f"../{NAME}", f"./{NAME}"):
        with pytest.raises(LvdError, match="no bundle at"):
            Guard.from_pretrained(path)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"README.md": b"better rates"}, "README.md was changed"),
        ({"trunk/config.json": None}, "trunk/config.json is missing"),
        ({"added.py": b"print()"}, "added.py does not belong to it"),
        ({"trunk/.gitattributes": b""}, "trunk/.gitattributes does not belong to it"),
        ({"manifest.json": b"{}"}, "has the digest"),
        ({"manifest.json": None}, "manifest.json is missing"),
    ],
    ids=str,
)
def test_a_repository_that_was_tampered_with_is_refused(
    changes: dict[str, bytes | None], told: str, bundle: Path, hub: Hub
) -> None:
    _, digest = push_bundle(bundle, NAME)
    hub.change(NAME, **changes)
    with pytest.raises(LvdError, match=told):
        Guard.from_pretrained(NAME, digest=digest)


def test_a_renamed_file_is_refused(bundle: Path, hub: Hub) -> None:
    push_bundle(bundle, NAME)
    files = hub[NAME].commits[-1][1]
    hub.change(NAME, **{"trunk/config.json": None, "trunk/settings.json": files["trunk/config.json"]})
    with pytest.raises(LvdError, match=r"trunk/settings.json does not belong to it"):
        Guard.from_pretrained(NAME)


def test_a_cache_that_was_changed_is_refused(bundle: Path, hub: Hub, tmp_path: Path) -> None:
    revision, digest = push_bundle(bundle, NAME)
    Guard.from_pretrained(NAME, digest=digest)
    (card,) = (tmp_path / "cache").glob(f"**/{revision}/README.md")
    card.resolve().write_bytes(b"better rates")
    with pytest.raises(LvdError, match=r"README.md was changed"):
        Guard.from_pretrained(NAME, revision=revision, digest=digest)


def test_offline_what_is_in_the_cache_is_loaded_and_else_told(
    bundle: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, digest = push_bundle(bundle, NAME)
    Guard.from_pretrained(NAME, digest=digest)
    offline(monkeypatch)
    hub.asked.clear()
    assert Guard.from_pretrained(NAME, digest=digest).bundle.digest == digest
    with pytest.raises(LvdError, match=r"org/other is no directory here, and the Hub cannot be reached"):
        Guard.from_pretrained("org/other")
    assert hub.asked == []


def test_a_hub_that_does_not_answer_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LvdError, match="the Hub cannot be reached"):
        Guard.from_pretrained(NAME)


def test_a_repository_or_revision_that_is_not_there_is_told(bundle: Path, hub: Hub) -> None:
    with pytest.raises(LvdError, match="org/nobody is no directory here, and the Hub shows no repository"):
        Guard.from_pretrained("org/nobody")
    push_bundle(bundle, NAME)
    with pytest.raises(LvdError, match="org/mine has no revision v7"):
        Guard.from_pretrained(NAME, revision="v7")
    with pytest.raises(LvdError, match="is no name of a repository"):
        Guard.from_pretrained("org/a--b")


def test_nothing_is_pushed_where_it_would_be_seen_or_would_replace(bundle: Path, hub: Hub) -> None:
    push_bundle(bundle, NAME, public=True)
    assert not hub[NAME].private
    with pytest.raises(LvdError, match="org/mine is there, and public: --public"):
        push_bundle(bundle, NAME)
    hub[NAME].private = True
    hub[NAME].commit({"model.safetensors": b"a model"})
    with pytest.raises(LvdError, match="holds other files"):
        push_bundle(bundle, NAME)


def test_a_bundle_that_was_changed_is_not_pushed(bundle: Path, hub: Hub, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "README.md").write_text("better rates")
    with pytest.raises(LvdError, match=r"README.md was changed"):
        push_bundle(copy, NAME)
    assert hub.asked == []


def test_what_is_not_pinned_is_warned_of(bundle: Path, hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    _, digest = push_bundle(bundle, NAME)
    with caplog.at_level(logging.WARNING, "lvd.guard"):
        Guard.from_pretrained(NAME, digest=digest)
        assert not caplog.records
        Guard.from_pretrained(NAME)
    assert "org/mine is taken as the Hub has it" in caplog.text
