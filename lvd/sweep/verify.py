"""Read what stands in a run against what its jobs and exports wrote, and name what differs."""

from dataclasses import dataclass
from pathlib import Path

from lvd.errors import LvdError
from lvd.guard.verify import verify_bundle
from lvd.sweep.results import read_result
from lvd.sweep.state import damages


@dataclass(frozen=True)
class Verified:
    """What reading a whole run has shown."""

    findings: list[str]  # a sentence for each damaged file
    unknown: int  # jobs of an earlier version, which wrote no digests
    read: int  # files


def verify_run(run: Path) -> Verified:
    """Read every file of a run whose digest is known.

    Raises:
        LvdError: there is no such run.
    """
    if not run.is_dir():
        raise LvdError(f"no run at {run}: make it with train.py name={run.name}")
    findings, unknown, read = [], 0, 0
    for path in sorted([*run.glob("trunk/result.json"), *run.glob("*/step_*/result.json")]):
        result = read_result(path.parent)
        read += 1
        if result is None:
            findings.append(f"{path} is damaged: it is not a result.json")
        elif result.status == "done":
            read += len(result.files)
            findings += damages(path.parent, result)
            unknown += not result.files
    for directory in sorted((run / "bundles").glob("[!.]*/")):  # not what a killed export left
        read += 1
        try:
            digest = verify_bundle(directory)
        except LvdError as error:
            findings.append(str(error))
        else:
            if not digest.startswith(directory.name.partition("_")[0]):
                findings.append(f"bundle {directory} has the digest {digest}: it was changed")
    pointer = run / "bundle"
    if pointer.is_symlink() and not pointer.exists():
        findings.append(f"{pointer} points to a bundle that is not there: {pointer.readlink()}")
    return Verified(findings, unknown, read)


def print_verified_run(run: Path) -> None:
    """Read a whole run and say what is wrong with it.

    Raises:
        LvdError: anything is, or not all of it can be checked.
    """
    verified = verify_run(run)
    for finding in verified.findings:
        print(finding)
    if verified.findings:
        raise LvdError(
            f"run {run} is damaged: {len(verified.findings)} bad files, as listed; the train.py command that "
            "made it trains again what is damaged and nothing else, and evaluate.py exports again a bundle "
            "that was moved away"
        )
    if verified.unknown:
        raise LvdError(
            f"run {run} cannot be checked: {verified.unknown} of its jobs were done by an earlier version, "
            "which wrote no digests; the command that made it, with force=true, trains them again"
        )
    print(f"run {run} is as it was written: {verified.read} files, every byte read")
