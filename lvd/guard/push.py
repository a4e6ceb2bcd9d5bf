"""Push a bundle to the Hugging Face Hub.

    python -m lvd.guard.push runs/mine/bundle org/name [--public]

The repository is made where there is none, private unless --public is given. It holds the bundle and nothing
else, with its signature where it has one (`python -m lvd.guard.sign`). What goes there are the bytes that
were verified before.
"""

import argparse
import sys
from pathlib import Path

from lvd.command import exit_status
from lvd.guard.hub import push
from lvd.guard.pointer import MANIFEST
from lvd.guard.source import find_directory
from lvd.guard.verify import SIGNATURE, verified_files


def push_bundle(bundle: Path, name: str, *, public: bool = False) -> tuple[str, str]:
    """Push a bundle to the Hub's repository `name`; returns the revision (a commit) and the digest.

    Raises:
        LvdError: the bundle is not whole, or `push` refuses.
    """
    verified = verified_files(find_directory(bundle))
    files = {**verified.files, MANIFEST: verified.manifest}
    if verified.signature is not None:
        files[SIGNATURE] = verified.signature
    message = f"lvd bundle {verified.digest}"
    return push(name, files, public=public, message=message), verified.digest


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lvd.guard.push", description="Push a bundle to the Hub.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("name", help="org/name of the repository")
    parser.add_argument("--public", action="store_true", help="everybody may read it; private without")
    arguments = parser.parse_args()
    revision, digest = push_bundle(arguments.bundle, arguments.name, public=arguments.public)
    print(f"revision {revision}")
    print(f"digest {digest}")
    print(f'Guard.from_pretrained("{arguments.name}", revision="{revision}", digest="{digest}")')


if __name__ == "__main__":
    sys.exit(exit_status(main))
