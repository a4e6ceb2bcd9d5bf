"""Files are written whole: with what was there before or with all that is new, and on the disk by then."""

import os
from pathlib import Path

import pytest

from lvd.files import atomic_file, json_sha256, remove_partial_files, write_atomically


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_there_when_all_of_it_is(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    with atomic_file(path) as partial:
        partial.write_bytes(b"one, ")
        assert not path.exists()
        with partial.open("ab") as file:
            file.write(b"two")
    assert path.read_bytes() == b"one, two"
    assert names(path.parent) == ["file.bin"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, ValueError])
def test_an_error_leaves_the_file_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.bin"
    write_atomically(path, b"old")

    def write() -> None:
        with atomic_file(path) as partial:
            partial.write_bytes(b"half of the n")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


def test_the_content_is_on_the_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, there = tmp_path / "file.bin", []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        there.append((path.exists(), os.fstat(descriptor).st_size))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(path, b"12345")
    assert there == [(False, 5)]
    assert path.exists()


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file.bin", b"kept")
    block = atomic_file(tmp_path / "file.bin")
    block.__enter__().write_bytes(b"half")  # and never left
    assert len(names(tmp_path)) == 2
    remove_partial_files(tmp_path)
    assert names(tmp_path) == ["file.bin"]


def test_a_digest_of_json_does_not_depend_on_the_order_of_keys() -> None:
    assert (
        json_sha256({"a": 1, "b": [2]}) == json_sha256({"b": [2], "a": 1}) != json_sha256({"a": 1, "b": [3]})
    )
