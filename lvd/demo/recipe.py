"""Train a generator of scenes from nothing: `python -m lvd.demo.recipe FOLDER` (extra `demo`).

Records clips of scenes and makes a genuine diffusers `AnimateDiffPipeline` for 8-frame 64x64 videos of
them, saved with `save_pretrained`. Latents are the principal components of 8x8 patches, so that a
`UNetMotionModel` can learn at once on `[16, 8, 8, 8]`, and an `AutoencoderKL` learns to compute them and,
with more care, to draw what they stand for. Every part resumes from its last snapshot in `FOLDER/work`.
"""

import argparse
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from diffusers import AnimateDiffPipeline
from safetensors.torch import load_file, save_file

from lvd.command import exit_status
from lvd.demo.basis import Basis
from lvd.demo.networks import build_scheduler, build_unet, build_vae
from lvd.demo.recogniser import load_recogniser, targets, to_float, train_recogniser
from lvd.demo.recorder import record_clips
from lvd.demo.scenes import FRAMES, Scene, random_scene
from lvd.demo.text import all_texts, build_text, caption_table, encode_captions
from lvd.demo.training import train_denoiser, train_vae
from lvd.files import atomic_file

NOTICE = Path(__file__).with_name("FREEDOOM.txt")  # goes with whatever is made from the clips


def record(folder: Path, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[Scene]]:
    """Clips of random scenes, the subject's share of their frames, and the scenes; recorded once."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    if not (folder / "clips.npy").exists():
        clips, shares = record_clips(scenes, seed)
        np.save(folder / "shares.npy", shares)
        with atomic_file(folder / "clips.npy") as partial, partial.open("wb") as file:
            np.save(file, clips)
    return np.load(folder / "clips.npy", mmap_mode="r"), np.load(folder / "shares.npy"), scenes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "output", type=Path, help="a folder for the pipeline, the recogniser, clips and snapshots"
    )
    parser.add_argument("--clips", type=int, default=8_000, help="training clips (default: %(default)s)")
    parser.add_argument("--recogniser-steps", type=int, default=3_000)
    parser.add_argument("--vae-steps", type=int, default=3_000)
    parser.add_argument("--image-steps", type=int, default=900, help="denoiser steps on single frames")
    parser.add_argument("--steps", type=int, default=20_000, help="denoiser steps on clips")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    work = args.output / "work"
    torch.manual_seed(args.seed)
    work.mkdir(parents=True, exist_ok=True)
    clips, shares, scenes = record(work, args.clips, args.seed)
    basis_file = work / "basis.safetensors"
    if not basis_file.exists():  # fitted elsewhere, its directions might point the other way
        save_file(asdict(Basis.fit(to_float(clips[::5, ::3]).flatten(0, 1))), basis_file)
    basis = Basis(**load_file(basis_file))
    recogniser_file = args.output / "recogniser.safetensors"
    if not recogniser_file.exists():
        save_file(
            train_recogniser(clips, targets(scenes, shares), args.recogniser_steps).state_dict(),
            recogniser_file,
        )
    recogniser = load_recogniser(recogniser_file)

    tokenizer, text_encoder = build_text()
    unet, vae = build_unet(), build_vae()
    texts = all_texts()
    hidden = encode_captions(text_encoder, tokenizer, texts)
    caption_index = caption_table(scenes, texts, np.random.default_rng(args.seed))
    latents = basis.encode_clips(clips)
    for frames, steps in ((1, args.image_steps), (FRAMES, args.steps)):
        snapshot = work / f"denoiser_{frames}.pt"
        train_denoiser(unet, hidden, caption_index, latents, frames=frames, steps=steps, snapshot=snapshot)
    train_vae(vae, basis, recogniser, clips, args.vae_steps, work / "vae.pt")

    pipeline = AnimateDiffPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        motion_adapter=None,
        scheduler=build_scheduler(),
    )
    unet.half()
    vae.half()
    pipeline.save_pretrained(args.output / "generator")
    shutil.copy(NOTICE, args.output / "generator" / NOTICE.name)
    print(f"saved {args.output / 'generator'}", flush=True)


if __name__ == "__main__":
    sys.exit(exit_status(main))
