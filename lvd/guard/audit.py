"""The audit log: one hash-chained JSON line a sample, and a command that verifies it.

    python -m lvd.guard.audit FILE [--head DIGEST]

Every record holds the digest of the one before it, so that a record that was edited, removed or moved breaks
the chain there. A tail that was cut off leaves a whole chain: only the last known head digest shows it.
"""

import argparse
import datetime
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lvd.command import exit_status
from lvd.errors import LvdError
from lvd.files import json_sha256, sha256

try:
    import fcntl
except ImportError:  # Windows: one process a log
    fcntl = None  # type: ignore[assignment]

GENESIS = "0" * 64  # what the first record holds as the digest before it


class AuditLog:
    """Appends to a log, from any number of threads and processes.

    Prompts are recorded as their SHA-256, and themselves only with `prompts`.

    Raises:
        LvdError: the log cannot be written, or its last record is not whole.
    """

    def __init__(self, path: str | Path, *, prompts: bool = False) -> None:
        self.path = Path(path)
        self._prompts = prompts
        self._lock = threading.Lock()

    def append(self, bundle: str, decisions: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        """Record (prompt, decision) of each sample, durably, and return the digest of the last record."""
        try:
            with self._lock, self.path.open("a+b") as file:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX)
                number, head = _last(file, self.path)
                lines = b""
                for prompt, decision in decisions:
                    number += 1
                    record = {
                        "number": number,
                        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
                        "bundle": bundle,
                        "prompt_sha256": sha256(prompt.encode(errors="surrogatepass")),
                        **({"prompt": prompt} if self._prompts else {}),
                        **decision,
                        "previous": head,
                    }
                    head = _digest(record)
                    lines += _line({**record, "digest": head})
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise LvdError(f"audit log {self.path} cannot be written: {error.strerror}") from None
        return head


def verify(path: Path, head: str | None = None) -> tuple[int, str]:
    """Check the whole chain; returns the number of records and the digest of the last.

    Raises:
        LvdError: as `records` does; or the chain does not end at `head`, the last digest that is known from
            elsewhere.
    """
    count, last, seen = 0, GENESIS, head in (None, GENESIS)
    for record in records(path):
        count, last = record["number"], record["digest"]
        seen = seen or last == head
    if not seen:
        raise LvdError(f"{path}: the record with the digest {head} is missing: the tail was cut off")
    return count, last


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a log, each after the chain up to it was checked.

    Raises:
        LvdError: names the first record that was edited, removed or moved; or the log cannot be read.
    """
    previous = GENESIS
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                record = _parse(line, path, number)
                if record["digest"] != _digest(record) or line != _line(record):
                    raise LvdError(f"{path} line {number}: record {record['number']} was edited")
                if record["number"] != number:
                    raise LvdError(
                        f"{path} line {number}: record {number} was removed or moved: "
                        f"record {record['number']} stands in its place"
                    )
                if record["previous"] != previous:
                    bad = max(number - 1, 1)
                    raise LvdError(f"{path} line {bad}: record {bad} was edited or replaced")
                previous = record["digest"]
                yield record
    except OSError as error:
        raise LvdError(f"audit log {path} cannot be read: {error.strerror}") from None


def _last(file: Any, path: Path) -> tuple[int, str]:
    """Number and digest of the last record. A line without its end was never acknowledged: it is dropped."""
    end = file.seek(0, os.SEEK_END)
    block = b""
    start = end
    while start > 0 and block[:-1].count(b"\n") < 2:
        start = max(0, start - 65536)
        file.seek(start)
        block = file.read(end - start)
    lines = block.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        file.truncate(end - len(lines.pop()))
    if not lines:
        return 0, GENESIS
    record = _parse(lines[-1], path, None)
    if record["digest"] != _digest(record):
        raise LvdError(f"audit log {path}: its last record was edited; verify it, and begin another file")
    return record["number"], record["digest"]


def _parse(line: bytes, path: Path, number: int | None) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
        if not isinstance(record, dict) or not {"number", "previous", "digest"} <= record.keys():
            raise ValueError
    except (RecursionError, ValueError):
        where = f"line {number}" if number is not None else "the last line"
        raise LvdError(f"{path}: {where} is not a record: it was edited or cut") from None
    return record


def _line(record: Mapping[str, Any]) -> bytes:
    """The one way to write it: any other bytes were edited."""
    return json.dumps(record).encode() + b"\n"


def _digest(record: Mapping[str, Any]) -> str:
    content = {key: value for key, value in record.items() if key != "digest"}
    return json_sha256(content)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lvd.guard.audit", description="Verify an audit log.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--head", help="the last digest that is known: finds a tail that was cut off")
    arguments = parser.parse_args()
    count, head = verify(arguments.file, arguments.head)
    print(f"{count} records, unbroken; head {head}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
