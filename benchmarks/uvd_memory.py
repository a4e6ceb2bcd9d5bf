"""Peak anonymous memory of importing the paper's files: 10 GB of x0, and 10 GB of latents to repair it with.

191 videos as the paper's code saves them, float32 [50, 4, 16, 64, 64], in files without data on the disk
(holes, which read as zeros). The import itself writes 2 x 5 GB into a temporary directory: a journal, and the
shards. Memory-mapped files are not anonymous: the system takes their pages back when it needs them.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lvd.command import exit_status

ROOT = Path(__file__).parent.parent
SHAPE = (50, 4, 16, 64, 64)


def write_holes(path: Path, videos: int) -> None:
    import torch

    with torch.serialization.skip_data():
        torch.save(torch.empty(videos, *SHAPE), path)


def anonymous_megabytes(process: int) -> float:
    """Resident anonymous memory of a process now; 0 when it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return sum(float(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")) / 1024


def measure(folder: Path, videos: int) -> tuple[float, float, float]:
    """Gigabytes of pred_x0.pth, seconds of the import, and its peak of anonymous memory in MiB."""
    write_holes(folder / "pred_x0.pth", videos)
    write_holes(folder / "pred_xt.pth", videos)
    (folder / "labels.csv").write_text("1,2,3,4,5\n" + "".join(f"{i},,,,\n" for i in range(videos)))
    started, peak = time.perf_counter(), 0.0
    command = [sys.executable, str(ROOT / "capture.py"), "source=uvd", "name=paper"]
    files = ["pred_x0=pred_x0.pth", "pred_xt=pred_xt.pth", "labels=labels.csv"]
    with subprocess.Popen([*command, *files], cwd=folder, stdout=subprocess.DEVNULL) as child:
        while child.poll() is None:
            peak = max(peak, anonymous_megabytes(child.pid))
            time.sleep(0.01)
    if child.returncode != 0:
        raise SystemExit(f"the import ended with {child.returncode}")
    return (folder / "pred_x0.pth").stat().st_size / 1e9, time.perf_counter() - started, peak


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        size, seconds, peak = measure(Path(folder), videos=191)
    print(f"{size:.1f} GB of x0, as much of latents: {seconds:.0f} s")
    print(f"anonymous memory at the peak: {peak:.0f} MiB (at most 1,000 is wanted)")


if __name__ == "__main__":
    sys.exit(exit_status(main))
