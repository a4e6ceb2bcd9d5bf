"""A capture is a folder of files: by a Hub or an object store it comes to others as it was written."""

import shutil
from pathlib import Path

import numpy as np
from huggingface_hub import HfApi

from conftest import STEPS, write_capture
from lvd.latents.reader import CaptureReader
from lvd.latents.verify import verify
from support.hub import Hub

NAME = "org/mine"
COUNT = 12


def same_capture(one: Path, other: Path) -> bool:
    a, b = CaptureReader(one), CaptureReader(other)
    rows = range(COUNT)
    same = (np.array_equal(a.step(step).read(rows), b.step(step).read(rows)) for step in range(STEPS))
    return a.info == b.info and a.samples == b.samples and all(same)


def test_a_capture_is_read_back_from_a_data_set_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    mine, theirs = write_capture(tmp_path / "captures" / "mine", COUNT), tmp_path / "captures" / "theirs"
    api = HfApi()
    api.create_repo(NAME, repo_type="dataset", private=True)  # `hf upload` calls these two
    api.upload_folder(repo_id=NAME, repo_type="dataset", folder_path=mine)
    api.snapshot_download(NAME, repo_type="dataset", local_dir=theirs)  # `hf download`
    assert verify(theirs) == []
    assert same_capture(mine, theirs)

    cached = Path(api.snapshot_download(NAME, repo_type="dataset"))
    assert (cached / "step_00" / "shard_0000.h5").is_symlink()  # into the cache, where its files are
    assert verify(cached) == []
    assert same_capture(mine, cached)

    shard = "step_01/shard_0000.h5"
    content = bytearray((mine / shard).read_bytes())
    content[-1] ^= 1
    hub.change(NAME, **{shard: bytes(content)})
    api.snapshot_download(NAME, repo_type="dataset", local_dir=theirs)
    assert [str(finding.path) for finding in verify(theirs)] == [shard]


def test_a_capture_of_links_is_read_from_where_only_files_are(tmp_path: Path) -> None:
    mine = write_capture(tmp_path / "mine", COUNT)
    linked, copied = tmp_path / "linked", tmp_path / "copied"
    for path in mine.rglob("*"):
        if path.is_file():
            (linked / path.relative_to(mine)).parent.mkdir(parents=True, exist_ok=True)
            (linked / path.relative_to(mine)).symlink_to(path)
    shutil.copytree(linked, copied, symlinks=False)  # as an object store keeps it
    assert not any(path.is_symlink() for path in copied.rglob("*"))
    for capture in (linked, copied):
        assert verify(capture) == []
        assert same_capture(mine, capture)
