"""What the benchmarks' command lines share: help is the module's text, a mistake is told in a sentence."""

import argparse
import sys
from collections.abc import Callable

from lvd.errors import LvdError


def parser(text: str | None) -> argparse.ArgumentParser:
    """One whose `--help` shows the text as it is written."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def run(main: Callable[[], None]) -> int:
    """Call `main`; the exit status."""
    try:
        main()
    except LvdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
