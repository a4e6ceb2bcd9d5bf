"""Train the demo generator from nothing: `python -m lvd.demo.recipe`.

Makes a genuine diffusers `AnimateDiffPipeline` for 8-frame 32x32 videos of moving digits and saves it
with `save_pretrained`: an `AutoencoderKL` (factor 4), then a `UNetMotionModel` together with its
`CLIPTextModel`, on latents `[4, 8, 8, 8]`. The diffusion part resumes from its last snapshot.
"""

import argparse
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    UNetMotionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lvd.demo.digits import COLOURS, DIGITS, FRAMES, MOTIONS, SIZE, Scene, load_glyphs, render, write_prompts

GENERATOR = Path(__file__).parent / "generator"
TEXT_WIDTH = 64
MAX_TOKENS = 16
WORDS = " ".join(["a", *DIGITS, *COLOURS, *MOTIONS]).split()
BATCH_FRAMES = 128  # frames in a batch, as single images or as videos: what fits the cache of a CPU


def build_tokenizer(words: Iterable[str] = WORDS, max_tokens: int = MAX_TOKENS) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer built from the words of the captions: one token each."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = alphabet + [f"{char}</w>" for char in alphabet]
    merges: list[str] = []
    for word in sorted(set(words), key=lambda word: (-len(word), word)):  # a short word cannot cut a long one
        symbols = [*word[:-1], f"{word[-1]}</w>"]
        merged = symbols[0]
        for symbol in symbols[1:]:
            if f"{merged} {symbol}" not in merges:
                merges.append(f"{merged} {symbol}")
                tokens.append(merged + symbol)
            merged += symbol
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(dict.fromkeys(tokens))},
        merges=[tuple(merge.split(" ")) for merge in merges],
        model_max_length=max_tokens,
    )


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        force_upcast=False,
        mid_block_add_attention=False,
    )


def build_unet() -> UNetMotionModel:
    """Convolutions at 8x8; text and motion attention at 4x4 only, where they are cheap on a CPU."""
    return UNetMotionModel(
        sample_size=SIZE // 4,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
        up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
        num_attention_heads=4,
        motion_num_attention_heads=4,
        motion_max_seq_length=FRAMES,
        temporal_transformer_layers_per_block=(0, 1),
        reverse_temporal_transformer_layers_per_block=((1, 1), (0, 0)),
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A random text encoder that stays as it is: every word keeps a direction of its own.

    Trained together with the UNet it gave all its room to the colours, which lower the loss first, and the
    digits could no longer be told apart in its output.
    """
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    torch.nn.init.normal_(encoder.get_input_embeddings().weight)
    return encoder.eval().requires_grad_(False)


def build_scheduler() -> DDIMScheduler:
    """AnimateDiff's own noise schedule; nothing is clipped, so x0 is the plain epsilon formula."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def draw_videos(count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Random scenes of random real digits: `[count, FRAMES, 3, SIZE, SIZE]` uint8 and their captions."""
    rng = np.random.default_rng(seed)
    glyphs, labels = load_glyphs()
    videos = torch.empty(count, FRAMES, 3, SIZE, SIZE, dtype=torch.uint8)
    captions = []
    for i in range(count):
        glyph = int(rng.integers(len(glyphs)))
        scene = Scene(int(labels[glyph]), str(rng.choice(list(COLOURS))), str(rng.choice(MOTIONS)))
        videos[i] = ((render(scene, glyphs[glyph], rng) + 1) * 127.5).round().byte()
        captions.append(scene.caption)
    return videos, captions


def train_vae(vae: AutoencoderKL, videos: Tensor, steps: int, device: torch.device) -> None:
    """Reconstruct single frames; the weak KL term keeps the latents near a unit Gaussian's scale."""
    frames = videos.flatten(0, 1)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    vae.train()
    for step in _logged(range(steps), "vae"):
        batch = _to_float(frames[torch.randint(len(frames), (64,))]).to(device)
        posterior = vae.encode(batch).latent_dist
        restored = vae.decode(posterior.sample()).sample
        error = F.mse_loss(restored, batch) + 0.5 * F.l1_loss(restored, batch)
        loss = error + 2e-4 * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0 or step == steps - 1:
            print(f"vae step {step}: loss {loss.item():.4f}, error {error.item():.4f}", flush=True)
    vae.eval()


@torch.no_grad()
def encode(vae: AutoencoderKL, videos: Tensor, device: torch.device) -> Tensor:
    """Unscaled latents `[N, 4, FRAMES, 8, 8]` float32 of uint8 videos."""
    latents = [
        vae.encode(_to_float(chunk.flatten(0, 1)).to(device))
        .latent_dist.mean.unflatten(0, (-1, FRAMES))
        .cpu()
        for chunk in videos.split(64)
    ]
    return torch.cat(latents).transpose(1, 2).contiguous()


def train_denoiser(
    unet: UNetMotionModel,
    captions: Tensor,
    caption_index: Tensor,
    latents: Tensor,
    *,
    frames: int,
    steps: int,
    device: torch.device,
    snapshot: Path,
) -> None:
    """Epsilon prediction on scaled latents, one caption in ten dropped; leaves the EMA weights in place.

    Learns clips of `frames` frames: 1 learns what things look like, from eight times as many scenes a
    second, FRAMES then learns how they move (as AnimateDiff does; Guo et al., 2024). captions
    `[distinct, MAX_TOKENS, TEXT_WIDTH]` holds each distinct caption once, encoded, the empty one first;
    caption_index `[N]` says which belongs to `latents[i]`.
    """
    scheduler = build_scheduler()
    unet.to(device).train()
    average = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1.5e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps, pct_start=0.05)
    # Which digit it will be is decided in heavy noise, where the plain epsilon loss hardly counts: weigh it
    # as v-prediction would, 1 + 1 / SNR (Salimans and Ho, 2022), up to a bound.
    alpha_bar = scheduler.alphas_cumprod.to(device)
    weight = (1 + (1 - alpha_bar) / alpha_bar).clamp_max(20.0)
    done = 0
    parts: dict[str, Any] = {"unet": unet, "average": average, "optimizer": optimizer, "schedule": schedule}
    if snapshot.exists():
        state = torch.load(snapshot, weights_only=True, map_location=device)
        done = state.pop("done")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        print(f"resuming at step {done}", flush=True)

    batch = BATCH_FRAMES // frames
    recent: list[float] = []
    for step in _logged(range(done, steps), f"{frames}-frame clips"):
        rows = torch.randint(len(latents), (batch,))
        start = int(torch.randint(FRAMES - frames + 1, ()))
        x_0 = latents[rows, :, start : start + frames].to(device)
        hidden = captions[caption_index[rows] * (torch.rand(batch) >= 0.1)].to(device)
        timestep = torch.randint(scheduler.config.num_train_timesteps, (batch,), device=device)
        noise = torch.randn_like(x_0)
        x_t = scheduler.add_noise(x_0, noise, timestep)
        predicted = unet(x_t, timestep, encoder_hidden_states=hidden.repeat_interleave(frames, dim=0)).sample
        loss = (weight[timestep] * (predicted - noise).square().mean(dim=(1, 2, 3, 4))).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(unet)
        recent.append(loss.item())
        if (step + 1) % 250 == 0 or step + 1 == steps:
            print(f"{frames}-frame step {step + 1}: loss {np.mean(recent):.4f}", flush=True)
            recent.clear()
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save({"done": step + 1, **state}, snapshot.with_suffix(".tmp"))
            snapshot.with_suffix(".tmp").replace(snapshot)
    unet.load_state_dict(average.module.state_dict())
    unet.eval()


def _to_float(frames: Tensor) -> Tensor:
    return frames.float() / 127.5 - 1.0


def _logged(steps: range, what: str) -> Iterator[int]:
    """Iterate and print the time left once a minute."""
    started = last = time.monotonic()
    for step in steps:
        yield step
        now = time.monotonic()
        if now - last > 60:
            share = (step + 1 - steps.start) / len(steps)
            print(f"{what}: {share:.0%}, {(now - started) * (1 / share - 1) / 60:.0f} min left", flush=True)
            last = now


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=GENERATOR)
    parser.add_argument("--videos", type=int, default=12_000, help="training videos (default: %(default)s)")
    parser.add_argument("--vae-steps", type=int, default=1_200)
    parser.add_argument("--image-steps", type=int, default=6_000, help="denoiser steps on single frames")
    parser.add_argument("--steps", type=int, default=3_000, help="denoiser steps on videos")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args.output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    videos, captions = draw_videos(args.videos, args.seed)
    print(f"{args.videos} videos drawn in {time.monotonic() - started:.0f} s", flush=True)

    vae_dir = args.output / "vae"
    if (vae_dir / "config.json").exists():
        vae = AutoencoderKL.from_pretrained(vae_dir).to(device).eval()
        latents = encode(vae, videos, device)
    else:
        vae = build_vae().to(device)
        train_vae(vae, videos, args.vae_steps, device)
        latents = encode(vae, videos, device)
        vae.register_to_config(scaling_factor=1.0 / latents.std().item())
        vae.save_pretrained(vae_dir)
    latents *= vae.config.scaling_factor
    print(f"latents encoded after {time.monotonic() - started:.0f} s", flush=True)

    tokenizer = build_tokenizer()
    distinct = ["", *sorted(set(captions))]
    place = {caption: index for index, caption in enumerate(distinct)}
    tokens = tokenizer(distinct, padding="max_length", truncation=True, return_tensors="pt").input_ids
    unet, text_encoder = build_unet(), build_text_encoder(tokenizer)
    with torch.inference_mode():
        encoded = text_encoder(tokens).last_hidden_state
    caption_index = torch.tensor([place[caption] for caption in captions])
    snapshots = []
    for frames, steps in ((1, args.image_steps), (FRAMES, args.steps)):
        snapshots.append(args.output / f"snapshot_{frames}.pt")
        train_denoiser(
            unet,
            encoded,
            caption_index,
            latents,
            frames=frames,
            steps=steps,
            device=device,
            snapshot=snapshots[-1],
        )

    pipeline = AnimateDiffPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        motion_adapter=None,
        scheduler=build_scheduler(),
    )
    pipeline.to("cpu").save_pretrained(args.output)
    for snapshot in snapshots:
        snapshot.unlink()
    write_prompts(args.output.parent / "prompts.csv")
    print(f"saved {args.output} after {(time.monotonic() - started) / 60:.1f} min on {device}", flush=True)


if __name__ == "__main__":
    main()
