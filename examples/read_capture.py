"""Read a capture: how far x0 of each step is from x0 of the last one, for safe and for unsafe samples.

python examples/read_capture.py captures/demo
"""

import argparse
from pathlib import Path

import numpy as np

from lvd.errors import LvdError
from lvd.latents.reader import CaptureReader


def main() -> None:
    parser = argparse.ArgumentParser(description="The distance of x0 to the last step's, by step.")
    parser.add_argument("capture", type=Path, help="what capture.py wrote")
    try:
        capture = CaptureReader(parser.parse_args().capture)
    except LvdError as error:
        raise SystemExit(f"error: {error}") from None
    groups = {
        "safe": [row for row, sample in enumerate(capture.samples) if sample.is_safe],
        "unsafe": [row for row, sample in enumerate(capture.samples) if sample.is_unsafe],
    }
    info = capture.info
    print(f"{len(capture.samples)} samples, x0 {list(info.origin.latent_shape)}, steps {info.steps_text()}")
    last = capture.step(info.stored_steps - 1)
    for step in range(info.stored_steps):
        reader = capture.step(step)
        words = []
        for name, rows in groups.items():
            if rows:
                difference = reader.read(rows).astype(np.float32) - last.read(rows)
                words.append(f"{name} {np.sqrt(np.mean(difference**2)):.3f}")
        print(f"step {step:02d}: {', '.join(words)}")


if __name__ == "__main__":
    main()
