"""Read what stands in a run against what its jobs and exports wrote, and name what differs."""

from pathlib import Path

from lvd.errors import LvdError
from lvd.guard.bundle import verify_bundle
from lvd.sweep.results import read_result
from lvd.sweep.state import damages


def verify_run(run: Path) -> tuple[list[str], int]:
    """A sentence for each damaged file of a run, and how many files were read.

    Raises:
        LvdError: there is no such run.
    """
    if not run.is_dir():
        raise LvdError(f"no run at {run}: make it with train.py name={run.name}")
    findings, read = [], 0
    for path in sorted([*run.glob("trunk/result.json"), *run.glob("*/step_*/result.json")]):
        result = read_result(path.parent)
        read += 1
        if result is None:
            findings.append(f"{path} is damaged: it is not a result.json")
        elif result.status == "done":
            read += len(result.files)
            findings += damages(path.parent, result)
            if not result.files:
                findings.append(f"{path} is of an earlier version and has no digests of its job's files")
    for directory in sorted((run / "bundles").glob("[!.]*/")):  # not what a killed export left
        read += 1
        try:
            digest = verify_bundle(directory)
        except LvdError as error:
            findings.append(str(error))
        else:
            if not digest.startswith(directory.name.partition("_")[0]):
                findings.append(f"bundle {directory} has the digest {digest}: it was changed")
    return findings, read


def print_verified_run(run: Path) -> None:
    """Read a whole run and say what is wrong with it.

    Raises:
        LvdError: anything is.
    """
    findings, read = verify_run(run)
    for finding in findings:
        print(finding)
    if findings:
        raise LvdError(
            f"run {run} is damaged: {len(findings)} bad files, as listed; the train.py command that made it "
            "trains again what is damaged and nothing else, and evaluate.py exports again a bundle that was "
            "moved away"
        )
    print(f"run {run} is as it was written: {read} files, every byte read")
