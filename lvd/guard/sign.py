"""Make a key, and sign a bundle with it.

    python -m lvd.guard.sign --new-key signing.pem      # and signing.pub.pem, for those who verify
    python -m lvd.guard.sign runs/mine/bundle --key signing.pem

The signature is a file of the bundle, and changes neither its digest nor another file; an earlier one is
replaced. `Guard.from_pretrained(..., public_key="signing.pub.pem")` refuses a bundle without it.
"""

import argparse
import getpass
import os
import sys
import uuid
from pathlib import Path

from lvd.command import exit_status
from lvd.errors import LvdError
from lvd.files import sync_directory, write_atomically
from lvd.guard.signature import new_key, private_key
from lvd.guard.source import find_directory
from lvd.guard.verify import SIGNATURE, verified_files


def sign_bundle(bundle: Path, key: Path, password: bytes | None = None) -> str:
    """Sign a whole bundle, and return its digest.

    Raises:
        LvdError: the bundle is not whole, or the key is none.
        TypeError: the key needs a password, and there is none.
    """
    signer = private_key(key, password)
    place = find_directory(bundle)
    verified = verified_files(place)
    # Written beside the bundle: whoever loads it meanwhile must find nothing strange in it.
    partial = place.directory.with_name(f".{place.directory.name}.{uuid.uuid4().hex}.tmp")
    write_atomically(partial, signer.sign(verified.manifest))
    partial.replace(place.directory / SIGNATURE)
    sync_directory(place.directory)
    return verified.digest


def make_key(path: Path) -> Path:
    """Write a new private key, which its owner alone may read, and return where its public key is.

    Raises:
        LvdError: there is a file already.
    """
    public_path = path.with_suffix(".pub.pem")
    private, public = new_key()
    for target, content, mode in ((path, private, 0o600), (public_path, public, 0o644)):
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except OSError as error:
            raise LvdError(f"the key {target} is not written: {error.strerror}") from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    return public_path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lvd.guard.sign", description="Sign a bundle.")
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--key", type=Path, help="private key of Ed25519, in PEM")
    parser.add_argument("--new-key", type=Path, help="write a new private key there, without a password")
    arguments = parser.parse_args()
    if (arguments.bundle is None) != (arguments.key is None) or not (arguments.key or arguments.new_key):
        parser.error("give --new-key FILE, or a bundle and --key FILE")
    if arguments.new_key is not None:
        print(f"public key {make_key(arguments.new_key)}; keep {arguments.new_key} to yourself")
    if arguments.bundle is not None:
        try:
            digest = sign_bundle(arguments.bundle, arguments.key)
        except TypeError:
            password = getpass.getpass(f"password of {arguments.key}: ").encode()
            digest = sign_bundle(arguments.bundle, arguments.key, password)
        print(f"signed: digest {digest}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
