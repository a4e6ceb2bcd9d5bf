"""Train a generator of scenes from nothing: `python -m lvd.demo.recipe FOLDER` (extra `demo`).

Records clips of scenes and makes a genuine diffusers `AnimateDiffPipeline` for 8-frame 64x64 videos of
them, saved with `save_pretrained`. Latents are the principal components of 8x8 patches, so that a
`UNetMotionModel` can learn at once on `[16, 8, 8, 8]`, and an `AutoencoderKL` learns to compute them and,
with more care, to draw what they stand for. Every part resumes from its last snapshot in `FOLDER/work`.
"""

import argparse
import copy
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AnimateDiffPipeline, AutoencoderKL, DDIMScheduler, UNetMotionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lvd.demo.muon import Muon, matrices_and_rest
from lvd.demo.recogniser import Recogniser, load_recogniser, targets, to_float, train_recogniser
from lvd.demo.scenes import FRAMES, SIZE, Scene, all_captions, captions_of, random_scene, record_clips
from lvd.files import atomic_file

NOTICE = Path(__file__).with_name("FREEDOOM.txt")  # goes with whatever is made from the clips
MAX_TOKENS = 20
TEXT_WIDTH = 64
PATCH = 8  # pixels of a latent's side
CHANNELS = 16
ADAM_LR = 2e-3
SNAPSHOT_SECONDS = 90
SHARES = {"named": 3, "hinted": 2, "open": 5}  # of ten captions that a scene is learned with, by kind


def build_vae() -> AutoencoderKL:
    """Few channels where there are many pixels: what a CPU can decode."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 48, 96),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=SIZE,
        scaling_factor=1.0,
        force_upcast=False,
        mid_block_add_attention=False,
    )


def build_unet() -> UNetMotionModel:
    """Convolutions at 8x8; text and motion attention at 4x4 only, where they are cheap on a CPU."""
    return UNetMotionModel(
        sample_size=SIZE // PATCH,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
        up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"),
        block_out_channels=(48, 96),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
        num_attention_heads=4,
        motion_num_attention_heads=4,
        motion_max_seq_length=FRAMES,
        temporal_transformer_layers_per_block=(0, 1),
        reverse_temporal_transformer_layers_per_block=((1, 1), (0, 0)),
    )


def build_tokenizer(words: Iterable[str], max_tokens: int) -> CLIPTokenizer:
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


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A random text encoder, for use as it is: every word keeps a direction of its own.

    Trained together with a small UNet, it gives all its room to the words that lower the loss first.
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


def build_text() -> tuple[CLIPTokenizer, CLIPTextModel]:
    """The captions' tokenizer, and a random text encoder, the same one in every run, that stays as it is.

    What all captions have in common is taken out of its output.
    """
    texts = all_texts()
    words = {word for text in texts for word in text.replace(",", " ,").split()}
    tokenizer = build_tokenizer(words, MAX_TOKENS)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        encoder = build_text_encoder(tokenizer)
    common = encode_captions(encoder, tokenizer, texts).mean(dim=(0, 1))
    encoder.final_layer_norm.bias -= common
    return tokenizer, encoder


def all_texts() -> list[str]:
    """The text of every caption once, the empty one first."""
    return ["", *sorted(caption.text for caption in all_captions())]


def caption_table(scenes: Sequence[Scene], texts: Sequence[str], rng: np.random.Generator) -> Tensor:
    """Indices `[N, 10]` into `texts` of ten captions of each scene, of its kinds as `SHARES` says."""
    at = {text: index for index, text in enumerate(texts)}
    rows = []
    for scene in scenes:
        captions = captions_of(scene)
        drawn = [rng.integers(len(captions[kind]), size=size) for kind, size in SHARES.items()]
        rows.append(
            [at[captions[kind][i].text] for kind, of_kind in zip(SHARES, drawn, strict=True) for i in of_kind]
        )
    return torch.tensor(rows)


@torch.no_grad()
def encode_captions(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    hidden: Tensor = encoder(tokens).last_hidden_state
    return hidden


def build_scheduler() -> DDIMScheduler:
    """AnimateDiff's betas, rescaled so that the first step sees noise alone (Lin et al., 2024).

    Without that, what little signal its heaviest noise leaves decides at once what a video of so many alike
    pixels will be. Such a schedule takes v-prediction and trailing timesteps.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
    )


@dataclass(frozen=True)
class Basis:
    """The principal components of 8x8 patches, each divided by the root of its standard deviation.

    Latents have a standard deviation of 1 over all channels, and more in those that hold more of the picture.
    """

    mean: Tensor  # [192]
    into: Tensor  # [192, CHANNELS]

    @staticmethod
    def fit(frames: Tensor) -> "Basis":
        """Of frames `[N, 3, SIZE, SIZE]` in [-1, 1]."""
        patches = F.unfold(frames, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
        mean = patches.mean(dim=0)
        variance, directions = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        variance, directions = variance.flip(0)[:CHANNELS], directions.flip(1)[:, :CHANNELS]
        gain = variance**-0.25
        return Basis(mean, (directions * gain / (variance * gain**2).mean().sqrt()).contiguous())

    def encode(self, frames: Tensor) -> Tensor:
        """Latents `[N, CHANNELS, 8, 8]` of frames `[N, 3, SIZE, SIZE]`."""
        patches = F.unfold(frames, PATCH, stride=PATCH).transpose(1, 2)
        side = SIZE // PATCH
        latents: Tensor = ((patches - self.mean) @ self.into).transpose(1, 2).unflatten(2, (side, side))
        return latents

    def encode_clips(self, clips: np.ndarray) -> Tensor:
        """Latents `[N, CHANNELS, FRAMES, 8, 8]` of clips `[N, FRAMES, SIZE, SIZE, 3]` uint8."""
        latents = [
            self.encode(to_float(clips[i : i + 100]).flatten(0, 1)).unflatten(0, (-1, FRAMES))
            for i in range(0, len(clips), 100)
        ]
        return torch.cat(latents).transpose(1, 2).contiguous()


class Training:
    """A network with its two optimizers, its average over the last steps, and a snapshot to resume from.

    The rate stays as it is for most of the steps and falls linearly over the last `cooling` of them, so that
    a run can be prolonged: train with `cooling=0` first.
    """

    def __init__(
        self, network: Any, steps: int, snapshot: Path, *, cooling: float, muon_lr: float, adam_lr: float
    ) -> None:
        matrices, rest = matrices_and_rest(network)
        self.network, self.steps, self.snapshot, self.cooling = network, steps, snapshot, cooling
        self.muon, self.adam = (
            Muon(matrices, muon_lr),
            torch.optim.AdamW(rest, adam_lr, (0.9, 0.98), weight_decay=0),
        )
        self.rest, self.rates = rest, ((self.muon, muon_lr), (self.adam, adam_lr))
        self.average = copy.deepcopy(network.state_dict())
        self.done, self.loss = 0, float("nan")
        if snapshot.exists():
            state = torch.load(snapshot, weights_only=True)
            network.load_state_dict(state["network"])
            self.average, self.done = state["average"], state["done"]
            self.muon.load_state_dict(state["muon"])
            self.adam.load_state_dict(state["adam"])
            print(f"{snapshot.stem}: resuming at step {self.done}", flush=True)

    def run(self, name: str) -> Iterator[int]:
        """Yield every step that is left, with a line every half minute and a snapshot now and then."""
        started = last = saved = time.monotonic()
        first = self.done
        for step in range(self.done, self.steps):
            yield step
            now = time.monotonic()
            if now - last > 30:
                speed = (step + 1 - first) / (now - started)
                left = (self.steps - step - 1) / speed / 60
                print(
                    f"{name} step {step + 1}: loss {self.loss:.4f}, {speed:.2f} steps/s, {left:.0f} min left",
                    flush=True,
                )
                last = now
            if now - saved > SNAPSHOT_SECONDS:
                self.save()
                saved = now
        self.save()

    def step(self, loss: Tensor) -> None:
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.rest, 1.0)
        cooled = (self.steps - self.done) / max(1.0, self.cooling * self.steps)
        for optimizer, rate in self.rates:
            optimizer.param_groups[0]["lr"] = rate * min(1.0, (self.done + 1) / 50, cooled)
            optimizer.step()
        self.done += 1
        decay = min(0.997, (self.done + 1) / (self.done + 10))
        with torch.no_grad():
            for key, value in self.network.state_dict().items():
                self.average[key].lerp_(value, 1 - decay)
        self.loss = 0.98 * self.loss + 0.02 * loss.item() if self.loss == self.loss else loss.item()

    def save(self) -> None:
        state = {"network": self.network.state_dict(), "average": self.average, "done": self.done}
        state |= {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}
        with atomic_file(self.snapshot) as partial:
            torch.save(state, partial)


def train_vae(
    vae: AutoencoderKL, basis: Basis, recogniser: Recogniser, clips: np.ndarray, steps: int, snapshot: Path
) -> None:
    """Draw frames from their latents, as the recogniser sees them too, and learn to compute the latents.

    Latents get a little noise: what a denoiser leaves. Leaves the averaged weights in place.
    """
    training = Training(vae.train(), steps, snapshot, cooling=0.4, muon_lr=0.01, adam_lr=ADAM_LR)
    for step in training.run("vae"):
        rows, frames = torch.randint(len(clips), (16,)), torch.randint(FRAMES, (16,))
        picture = to_float(clips[rows.numpy(), frames.numpy()])
        latents = basis.encode(picture)
        noise = 0.1 * torch.rand(16, 1, 1, 1) * torch.randn_like(latents)
        drawn = vae.decode(latents + noise).sample
        seen = zip(recogniser.features(drawn)[:3], recogniser.features(picture)[:3], strict=True)
        loss = F.l1_loss(drawn, picture) + 0.5 * F.mse_loss(drawn, picture)
        loss = loss + 0.1 * sum((one - other).abs().mean() for one, other in seen)
        if step % 3 == 0:  # the encoder has the easier half
            loss = loss + F.mse_loss(vae.encode(picture).latent_dist.mean, latents)
        training.step(loss)
    vae.load_state_dict(training.average)
    vae.eval()


def train_denoiser(
    unet: UNetMotionModel,
    hidden: Tensor,
    caption_index: Tensor,
    latents: Tensor,
    *,
    frames: int,
    steps: int,
    snapshot: Path,
) -> None:
    """v-prediction, one caption in twenty dropped; leaves the averaged weights in place.

    Learns clips of `frames` frames: 1 learns what things look like, and leaves the motion modules out,
    FRAMES then learns how they move (as AnimateDiff does; Guo et al., 2024). hidden
    `[distinct, MAX_TOKENS, TEXT_WIDTH]` holds each distinct caption once, encoded, the empty one first;
    caption_index `[N, captions]` says which describe `latents[i]`.
    """
    alpha_bar = build_scheduler().alphas_cumprod
    batch, muon_lr, cooling = (32, 0.012, 0.0) if frames == 1 else (4, 0.008, 0.6)
    with without_motion(unet) if frames == 1 else nullcontext():
        training = Training(unet.train(), steps, snapshot, cooling=cooling, muon_lr=muon_lr, adam_lr=ADAM_LR)
        for _ in training.run(f"{frames}-frame clips"):
            rows = torch.randint(len(latents), (batch,))
            start = torch.randint(FRAMES - frames + 1, (batch,))
            x_0 = torch.stack(
                [latents[row, :, at : at + frames] for row, at in zip(rows, start, strict=True)]
            )
            timestep = ((torch.arange(batch) + torch.rand(batch)) / batch * len(alpha_bar)).long()
            signal = alpha_bar[timestep].sqrt().view(-1, 1, 1, 1, 1)
            spread = (1 - alpha_bar[timestep]).sqrt().view(-1, 1, 1, 1, 1)
            noise = torch.randn_like(x_0)
            captions = caption_index[rows, torch.randint(caption_index.shape[1], (batch,))]
            states = hidden[captions * (torch.rand(batch) >= 0.05)]
            predicted = unet(
                signal * x_0 + spread * noise,
                timestep,
                encoder_hidden_states=states.repeat_interleave(frames, dim=0),
            ).sample
            training.step(F.mse_loss(predicted, signal * noise - spread * x_0))
    unet.load_state_dict(training.average)
    unet.eval()


@contextmanager
def without_motion(unet: UNetMotionModel) -> Iterator[None]:
    """Motion modules that change nothing, and cost nothing; afterwards they begin as such."""
    modules = [module for module in unet.modules() if isinstance(module, AnimateDiffTransformer3D)]
    for module in modules:
        torch.nn.init.zeros_(module.proj_out.weight)
        torch.nn.init.zeros_(module.proj_out.bias)
        module.forward = _pass_through
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _pass_through(hidden_states: Tensor, *_args: Any, **_options: Any) -> Tensor:
    return hidden_states


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
    main()
