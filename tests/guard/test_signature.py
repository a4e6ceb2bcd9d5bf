"""Where a public key is given, a bundle is signed by its owner or refused."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import StubPipeline, bundle_info, untrained_run
from lvd.errors import LvdError
from lvd.guard import Guard
from lvd.guard.bundle import load_bundle
from lvd.guard.export import export_bundle
from lvd.guard.sign import make_key, sign_bundle

SIGNATURE = "manifest.json.sig"


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """The pointer of a bundle that is not signed."""
    shutil.copytree(exported, tmp_path / "mine", symlinks=True)
    return tmp_path / "mine" / "bundle"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_key(tmp_path / "signing.pem")
    return tmp_path / "signing.pem"


def public(key: Path) -> Path:
    return key.with_suffix(".pub.pem")


def test_a_signed_bundle_is_loaded_with_the_key_and_without(bundle: Path, key: Path) -> None:
    digest = load_bundle(bundle).digest
    assert sign_bundle(bundle, key) == digest
    assert (bundle.resolve() / SIGNATURE).is_file()
    assert load_bundle(bundle, digest).digest == digest
    for given in (public(key), str(public(key)), public(key).read_text()):
        assert Guard.from_pretrained(bundle, digest=digest, public_key=given).bundle.digest == digest


def test_a_bundle_that_is_not_signed_is_refused(bundle: Path, key: Path) -> None:
    with pytest.raises(LvdError, match="is not signed, and a public key was given"):
        Guard.from_pretrained(bundle, public_key=public(key))


def test_another_key_is_refused_until_it_signs(bundle: Path, key: Path, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other.pem")
    sign_bundle(bundle, key)
    with pytest.raises(LvdError, match=r"is not signed by .*other.pub.pem"):
        Guard.from_pretrained(bundle, public_key=other)
    sign_bundle(bundle, tmp_path / "other.pem")
    Guard.from_pretrained(bundle, public_key=other)
    with pytest.raises(LvdError, match="is not signed by"):
        Guard.from_pretrained(bundle, public_key=public(key))


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize(
    "change", [flipped, lambda data: data[:-1], lambda data: data + b"\n", lambda _: b""]
)
def test_a_signature_that_was_changed_is_refused(
    change: Callable[[bytes], bytes], bundle: Path, key: Path
) -> None:
    sign_bundle(bundle, key)
    path = bundle.resolve() / SIGNATURE
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(LvdError, match="is not signed by"):
        Guard.from_pretrained(bundle, public_key=public(key))


def test_who_replaces_a_bundle_cannot_keep_its_signature(bundle: Path, key: Path, tmp_path: Path) -> None:
    sign_bundle(bundle, key)
    pipe = StubPipeline()
    pipe.shape = (4, 8, 8, 8)
    info = bundle_info(pipe, call={}, eta=1, lam=1.0)
    export_bundle(tmp_path / "forged" / "bundle", untrained_run(tmp_path / "run", lambda *_: "head", 1), info)
    forged = (tmp_path / "forged" / "bundle").resolve()
    shutil.copyfile(bundle / SIGNATURE, forged / SIGNATURE)
    load_bundle(forged)  # whole in itself
    with pytest.raises(LvdError, match="is not signed by"):
        Guard.from_pretrained(forged, public_key=public(key))


def test_a_signature_elsewhere_or_as_a_link_is_no_part_of_a_bundle(bundle: Path, key: Path) -> None:
    sign_bundle(bundle, key)
    directory = bundle.resolve()
    shutil.copyfile(directory / SIGNATURE, directory / "trunk" / SIGNATURE)
    with pytest.raises(LvdError, match="does not belong to it"):
        load_bundle(bundle)
    (directory / "trunk" / SIGNATURE).rename(directory.parent / SIGNATURE)
    (directory / SIGNATURE).unlink()
    (directory / SIGNATURE).symlink_to(f"../{SIGNATURE}")
    with pytest.raises(LvdError, match="does not belong to it"):
        load_bundle(bundle)


def test_what_was_changed_is_not_signed(bundle: Path, key: Path) -> None:
    (bundle / "README.md").write_text("better rates")
    with pytest.raises(LvdError, match=r"README.md was changed"):
        sign_bundle(bundle, key)
    assert not (bundle / SIGNATURE).exists()


def test_a_key_that_is_none_is_told(bundle: Path, key: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    sign_bundle(bundle, key)
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = serialization.Encoding.PEM
    (tmp_path / "curve.pem").write_bytes(
        curve.public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "text.pem").write_text("my key")
    for name, told in (
        ("curve.pem", "is not of Ed25519"),
        ("text.pem", "is no public key in PEM"),
        ("none.pem", "is not readable"),
        ("signing.pem", "is no public key in PEM"),
    ):
        with pytest.raises(LvdError, match=told):
            Guard.from_pretrained(bundle, public_key=tmp_path / name)
    with pytest.raises(LvdError, match="is no private key in PEM"):
        sign_bundle(bundle, public(key))


def test_without_cryptography_nothing_that_needs_it_is_loaded(
    bundle: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_bundle(bundle, key)
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(LvdError, match=r"pip install 'lvd\[sign\]'"):
        Guard.from_pretrained(bundle, public_key=public(key))
    load_bundle(bundle)


def test_the_command_makes_a_key_and_signs(bundle: Path, tmp_path: Path) -> None:
    key = tmp_path / "release.pem"
    command = [sys.executable, "-m", "lvd.guard.sign", str(bundle), "--new-key", str(key), "--key", str(key)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    digest = load_bundle(bundle, public_key=public(key)).digest
    assert ran.stdout.splitlines()[-1] == f"signed: digest {digest}"
    assert key.stat().st_mode & 0o077 == 0
    with pytest.raises(LvdError, match=r"release.pem is not written: File exists"):
        make_key(key)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_says_the_same(bundle: Path, key: Path) -> None:
    sign_bundle(bundle, key)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(public(key)), "-rawin"]
    files = ["-in", str(bundle / "manifest.json"), "-sigfile", str(bundle / SIGNATURE)]
    assert subprocess.run([*command, *files], check=False).returncode == 0
