"""Guard a pipeline of diffusers: the videos of what is released, and why the others are not.

    python examples/guard_pipeline.py runs/demo/bundle --pipeline lvd/demo/generator --prompt "a red room"

The pipeline has to be the one that was captured. Frames are written as an animated WebP for each video.
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from lvd.errors import LvdError
from lvd.guard import AuditLog, Guard


def main() -> None:
    parser = argparse.ArgumentParser(description="A pipeline of diffusers under guard.")
    parser.add_argument("bundle", help="what evaluate.py exported")
    parser.add_argument("--pipeline", required=True, help="repository or directory of the captured pipeline")
    parser.add_argument("--prompt", nargs="+", required=True)
    parser.add_argument("--digest", help="the bundle's digest, as evaluate.py printed it")
    parser.add_argument("--audit", type=Path, help="a log of the decisions")
    parser.add_argument("--videos", type=Path, default=Path(), help="where videos are written")
    arguments = parser.parse_args()
    try:
        pipe = DiffusionPipeline.from_pretrained(arguments.pipeline, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: no pipeline can be loaded from {arguments.pipeline}: {error}") from None
    audit = None if arguments.audit is None else AuditLog(arguments.audit)
    try:
        guard = Guard.from_pretrained(arguments.bundle, digest=arguments.digest, audit=audit)
        result = guard(pipe, prompt=arguments.prompt, generator=torch.Generator().manual_seed(0))
    except LvdError as error:
        raise SystemExit(f"error: {error}") from None
    for row, (frames, decision) in enumerate(zip(result.videos, result.decisions, strict=True)):
        made = "withheld"
        if frames is not None:
            path = arguments.videos / f"video_{row}.webp"
            frames[0].save(path, save_all=True, append_images=frames[1:], duration=125, loop=0)
            made = str(path)
        print(f"{arguments.prompt[row]}: {decision.outcome} at step {decision.step} ({decision.why}): {made}")


if __name__ == "__main__":
    main()
