"""HDF5 files that somebody crafted: refused by their structure, before any of their data is read.

Each is a real shard, spoiled; the manifest is made to agree with it, as who tampers would do.
"""

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t

from conftest import write_capture
from lvd.errors import LvdError
from lvd.files import file_sha256
from lvd.latents.reader import CaptureReader
from lvd.latents.verify import verify

NewCapture = Callable[..., Path]
Spoil = Callable[[h5py.File, str], None]


def replaced(**options: Any) -> Spoil:
    """The same content, stored in another way."""

    def spoil(file: h5py.File, name: str) -> None:
        data = file[name][:]
        del file[name]
        file.create_dataset(name, data=data, **options)

    return spoil


def holding(data: Any, **options: Any) -> Spoil:
    """Other content."""

    def spoil(file: h5py.File, name: str) -> None:
        del file[name]
        file.create_dataset(name, data=data, **options)

    return spoil


def declared(shape: tuple[int, ...] | None = None, dtype: Any = None) -> Spoil:
    """A dataset that is declared and was never written."""

    def spoil(file: h5py.File, name: str) -> None:
        shape_, dtype_ = shape or file[name].shape, dtype or file[name].dtype
        del file[name]
        file.create_dataset(name, shape_, dtype_)

    return spoil


def low_level(kind: h5t.TypeID | None = None, layout: int = h5d.CONTIGUOUS) -> Spoil:
    """What h5py's own interface does not make."""

    def spoil(file: h5py.File, name: str) -> None:
        space, stored = h5s.create_simple(file[name].shape), kind or file[name].id.get_type()
        del file[name]
        creation = h5p.create(h5p.DATASET_CREATE)
        creation.set_layout(layout)
        creation.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        h5d.create(file.id, name.encode(), stored, space, creation)

    return spoil


def grow(file: h5py.File, name: str) -> None:
    replaced(chunks=True, maxshape=(None,) * file[name].ndim)(file, name)


def link_externally(file: h5py.File, name: str) -> None:
    other = Path(file.filename).with_name("other.h5")
    with h5py.File(other, "w") as elsewhere:
        elsewhere[name] = file[name][:]
    del file[name]
    file[name] = h5py.ExternalLink(other.name, f"/{name}")


def link_softly(file: h5py.File, name: str) -> None:
    file.move(name, "elsewhere")
    file[name] = h5py.SoftLink("/elsewhere")


def store_externally(file: h5py.File, name: str) -> None:
    data = file[name][:]
    raw = Path(file.filename).with_name("raw.bin")
    data.tofile(raw)
    del file[name]
    file.create_dataset(name, data.shape, data.dtype, external=[(str(raw), 0, data.nbytes)])


def make_virtual(file: h5py.File, name: str) -> None:
    file.move(name, "elsewhere")
    source = file["elsewhere"]
    layout = h5py.VirtualLayout(source.shape, source.dtype)
    layout[:] = h5py.VirtualSource(".", "elsewhere", source.shape)
    file.create_virtual_dataset(name, layout)


def refer(file: h5py.File, name: str) -> None:
    count = len(file[name])
    del file[name]
    file.create_dataset(name, data=[file.ref] * count, dtype=h5py.ref_dtype)


def refer_to_a_region(file: h5py.File, name: str) -> None:
    file.move(name, "elsewhere")
    regions = [file["elsewhere"].regionref[:1]] * len(file["elsewhere"])
    file.create_dataset(name, data=regions, dtype=h5py.regionref_dtype)


def make_a_group(file: h5py.File, name: str) -> None:
    del file[name]
    file.create_group(name)


def name_a_type(file: h5py.File, name: str) -> None:
    del file[name]
    file[name] = np.dtype("<f2")


def drop(file: h5py.File, name: str) -> None:
    del file[name]


def bfloat16() -> h5t.TypeID:
    kind = h5t.IEEE_F16LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_ebias(127)
    return kind


PLAIN, LINK = "in the file itself", "is missing or a link to somewhere else"
EITHER: dict[str, tuple[Spoil, str]] = {
    "external link": (link_externally, LINK),
    "soft link": (link_softly, LINK),
    "missing": (drop, LINK),
    "external storage": (store_externally, PLAIN),
    "virtual dataset": (make_virtual, PLAIN),
    "chunked": (replaced(chunks=True), PLAIN),
    "gzip": (replaced(compression="gzip"), PLAIN),
    "checksums": (replaced(fletcher32=True), PLAIN),
    "growing": (grow, PLAIN),
    "a terabyte declared": (declared(shape=(2**40,)), PLAIN),
    "more axes": (declared(shape=(1,) * 32), PLAIN),
    "no axes": (holding(np.float16(1)), PLAIN),
    "never written": (declared(), "does not lie whole in the file"),
    "object references": (refer, PLAIN),
    "region references": (refer_to_a_region, PLAIN),
    "strings of any length": (holding(["s"] * 5, dtype=h5py.string_dtype()), PLAIN),
    "arrays of any length": (declared(dtype=h5py.vlen_dtype(np.float16)), PLAIN),
    "a structure": (holding(np.zeros(5, dtype=[("a", "<f2"), ("b", "<f2")])), PLAIN),
    "integers": (holding(np.arange(5)), PLAIN),
    "a group": (make_a_group, "is not a dataset"),
    "a type": (name_a_type, "is not a dataset"),
}
X0_ONLY: dict[str, tuple[Spoil, str]] = {
    "float32": (declared(dtype="<f4"), PLAIN),
    "big endian": (declared(dtype=">f2"), PLAIN),
    "integers of two bytes": (declared(dtype="<i2"), PLAIN),
    "bfloat16": (low_level(bfloat16()), PLAIN),
    "one sample more": (declared(shape=(6, 4, 4, 8, 8)), PLAIN),
    "other axes": (declared(shape=(5, 4, 8, 4, 8)), PLAIN),
}
IDS_ONLY: dict[str, tuple[Spoil, str]] = {
    "a megabyte each": (declared(dtype="S1000000"), PLAIN),
    "two bytes longer": (declared(dtype="S6"), PLAIN),
    "padded in another way": (low_level(h5t.FORTRAN_S1.copy()), PLAIN),
    "in the header": (low_level(layout=h5d.COMPACT), PLAIN),
    "one more": (holding(np.array([b"s000"] * 6)), PLAIN),
    "others": (holding(np.array([b"s000"] * 5)), "other samples than samples.csv, or in another order"),
}
CASES = [
    *(("x0", kind, *case) for kind, case in {**EITHER, **X0_ONLY}.items()),
    *(("sample_id", kind, *case) for kind, case in {**EITHER, **IDS_ONLY}.items()),
]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 samples in one shard a step."""
    return write_capture(tmp_path_factory.mktemp("pristine") / "tiny", 5)


@pytest.fixture
def tampered(pristine: Path, tmp_path: Path) -> Callable[[Callable[[Path], None]], Path]:
    """A copy of the capture whose first shard of step 1 was changed, and its manifest after it."""

    def change(spoil: Callable[[Path], None]) -> Path:
        capture = Path(shutil.copytree(pristine, tmp_path / "tampered"))
        path = capture / "step_01" / "shard_0000.h5"
        spoil(path)
        manifest = json.loads((capture / "manifest.json").read_text())
        for shard in manifest["shards"]:
            if capture / shard["path"] == path:
                shard.update(bytes=path.stat().st_size, sha256=file_sha256(path))
        (capture / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        return capture

    return change


@pytest.mark.parametrize(
    ("name", "spoil", "sentence"),
    [(name, spoil, sentence) for name, _, spoil, sentence in CASES],
    ids=[f"{name} {kind}" for name, kind, _, _ in CASES],
)
def test_a_crafted_shard_is_refused_before_its_data_is_read(
    tampered: Any, monkeypatch: pytest.MonkeyPatch, name: str, spoil: Spoil, sentence: str
) -> None:
    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            spoil(file, name)

    capture = tampered(change)
    if sentence != IDS_ONLY["others"][1]:  # plain ids are read, and are the wrong ones

        def read(dataset: h5py.Dataset, *_: Any) -> None:
            raise AssertionError(f"{dataset.name} was read")

        monkeypatch.setattr(h5py.Dataset, "__getitem__", read)
    tracemalloc.start()
    with pytest.raises(LvdError) as refusal:
        CaptureReader(capture).step(1).read(range(5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sentence in str(refusal.value)
    assert f"{capture}/step_01/shard_0000.h5" in str(refusal.value)
    assert name in str(refusal.value) or "samples.csv" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert peak < 2**20

    monkeypatch.undo()
    (finding,) = verify(capture)
    assert (finding.path, len(finding.sample_ids)) == ("step_01/shard_0000.h5", 5)


def test_a_shard_that_is_not_hdf5_is_refused(tampered: Any) -> None:
    capture = tampered(lambda path: path.write_bytes(b"GIF89a" * 100))
    with pytest.raises(LvdError, match="is not a readable shard"):
        CaptureReader(capture).step(1).read(range(5))
