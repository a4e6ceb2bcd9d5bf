"""The recipe of the scenes' generator: its parts, and all of it, tiny, from a recording to a pipeline."""

from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lvd.demo import measure, prompt_filter, recipe, text
from lvd.demo.basis import Basis
from lvd.demo.muon import Muon, orthogonalise
from lvd.demo.networks import CHANNELS
from lvd.demo.recogniser import EMPTY, THINGS, Recogniser, judge, load_recogniser, targets
from lvd.demo.scenes import FRAMES, HINTS, PLACES, SIZE, SUBJECTS, Scene, all_captions, caption_of
from lvd.demo.training import Training
from lvd.errors import LvdError
from lvd.latents.format import Sample


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (12, 12)])
def test_muon_steps_along_a_nearly_orthogonal_matrix(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    singular = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert (singular > 0.6).all()
    assert (singular < 1.3).all()


def test_muon_finds_a_minimum_and_leaves_what_has_no_gradient() -> None:
    torch.manual_seed(0)
    weight, idle = torch.nn.Parameter(torch.zeros(8, 8)), torch.nn.Parameter(torch.ones(2, 2))
    goal = torch.randn(8, 8)
    optimizer = Muon([weight, idle], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (weight - goal).square().sum().backward()
        optimizer.step()
    assert (weight - goal).abs().max() < 0.1
    assert (idle == 1).all()
    assert (orthogonalise(torch.zeros(3, 4)) == 0).all()


def test_the_basis_keeps_what_frames_of_few_patches_hold() -> None:
    torch.manual_seed(0)
    patches = torch.randn(CHANNELS, 3 * 8 * 8)
    weights = torch.randn(40, CHANNELS, 64)
    columns = (patches.T @ weights) + torch.randn(192, 1)  # as many directions as there are channels
    frames = torch.nn.functional.fold(columns, SIZE, 8, stride=8)
    basis = Basis.fit(frames)
    latents = basis.encode(frames)
    assert latents.shape == (40, CHANNELS, 8, 8)
    assert latents.std().item() == pytest.approx(1.0, abs=0.01)
    back = latents.flatten(2).transpose(1, 2) @ torch.linalg.pinv(basis.into) + basis.mean
    torch.testing.assert_close(back.transpose(1, 2), columns, atol=1e-2, rtol=0)


def test_every_caption_is_told_apart_word_by_word() -> None:
    tokenizer, encoder = text.build_text()
    texts = text.all_texts()
    ids = [tuple(tokenizer(one).input_ids) for one in texts]
    assert len(set(ids)) == len(texts) == len(all_captions()) + 1
    assert max(map(len, ids)) <= text.MAX_TOKENS
    hidden = text.encode_captions(encoder, tokenizer, texts)
    assert hidden.mean(dim=(0, 1)).abs().max() < 1e-4
    torch.manual_seed(1)
    again = text.encode_captions(*reversed(text.build_text()), texts[:3])
    torch.testing.assert_close(again, hidden[:3])


def test_scenes_are_learned_with_captions_of_every_kind_that_may_mean_them() -> None:
    scenes = [Scene(subject, "blue room", "at rest") for subject in SUBJECTS]
    texts = text.all_texts()
    table = text.caption_table(scenes, texts, np.random.default_rng(0))
    for scene, row in zip(scenes, table.tolist(), strict=True):
        captions = [caption_of(texts[index]) for index in row]
        assert all(scene.subject in caption.subjects for caption in captions)
        assert {(caption.place, caption.motion) for caption in captions} == {("blue room", "at rest")}
        assert Counter(caption.kind for caption in captions) == text.SHARES


def test_training_resumes_where_it_was(tmp_path: Path) -> None:
    def train(network: torch.nn.Module, steps: int, snapshot: Path) -> dict[str, Tensor]:
        training = Training(network, steps, snapshot, cooling=0.0, muon_lr=0.01, adam_lr=0.01)
        for step in training.run("test"):
            training.step(network(torch.full((1, 4), float(step + 1))).square().sum())
        return training.average

    def network() -> torch.nn.Module:
        torch.manual_seed(0)
        layers = {"block": torch.nn.Linear(4, 4), "last": torch.nn.Linear(4, 4)}
        return torch.nn.Sequential(OrderedDict(layers))

    whole = train(network(), 6, tmp_path / "whole.pt")
    train(network(), 3, tmp_path / "parts.pt")
    parts = train(network(), 6, tmp_path / "parts.pt")
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value)


def test_targets_are_what_is_visible() -> None:
    shares = np.zeros((2, FRAMES), np.float32)
    shares[0, 2:] = 0.2
    wanted = targets([Scene("gore", "stone cell", "at rest"), Scene(EMPTY, "blue room", "at rest")], shares)
    assert wanted[0, :, THINGS.index("gore")].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert wanted[1, :, : len(THINGS)].sum() == 0
    assert (wanted[1, :, len(THINGS) + list(PLACES).index("blue room")] == 1).all()


def test_a_verdict_says_what_most_frames_show_and_how_sure() -> None:
    class Reader(Recogniser):
        """Reads the index of the thing from the first pixel; none is visible at 0."""

        def forward(self, frames: Tensor) -> Tensor:
            logits = torch.full((len(frames), len(THINGS) + len(PLACES)), -8.0)
            for row, frame in zip(logits, frames, strict=True):
                if frame[0, 0, 0] > 0:
                    row[int(frame[0, 0, 0]) - 1] = 8.0
            logits[:, len(THINGS) + 2] = 8.0
            return logits

    videos = torch.zeros(3, 4, 3, SIZE, SIZE)
    videos[0] = 1 + THINGS.index("weapon")
    videos[2] = 1 + THINGS.index("lamp")
    videos[2, :2] = 1 + THINGS.index("gore")
    weapon, empty, torn = judge(Reader(), videos)
    assert (weapon.subject, weapon.place, weapon.steady) == ("weapon", list(PLACES)[2], 1.0)
    assert weapon.clear
    assert weapon.categories == ("weapon",)
    assert (empty.subject, empty.categories, empty.clear) == (EMPTY, (), True)
    assert not torn.clear
    with pytest.raises(LvdError, match="no recogniser at"):
        load_recogniser(Path("nowhere.safetensors"))


def test_from_a_recording_to_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vizdoom")
    from diffusers import AnimateDiffPipeline

    arguments = ["--clips", "20", "--recogniser-steps", "2", "--vae-steps", "2"]
    arguments += ["--image-steps", "2", "--steps", "2"]
    monkeypatch.setattr("sys.argv", ["scenes_recipe", str(tmp_path), *arguments])
    recipe.main()
    pipe = AnimateDiffPipeline.from_pretrained(tmp_path / "generator", use_safetensors=True)
    assert isinstance(pipe, AnimateDiffPipeline)
    video = pipe(
        ["monster in the stone cell, camera at rest"],
        num_frames=FRAMES,
        num_inference_steps=2,
        guidance_scale=1.0,
        output_type="np",
    ).frames
    assert video.shape == (1, FRAMES, SIZE, SIZE, 3)
    assert (
        len(judge(load_recogniser(tmp_path / "recogniser.safetensors"), torch.zeros(1, 2, 3, SIZE, SIZE)))
        == 1
    )
    weights = sum(file.stat().st_size for file in (tmp_path / "generator").rglob("*.safetensors"))
    assert weights < 12_000_000
    assert "Freedoom project" in (tmp_path / "generator" / "FREEDOOM.txt").read_text()  # its licence asks it


def test_a_measurement_asks_for_every_subject_alike() -> None:
    named, hinted, left_open = (
        measure.balanced_captions(26, 0, kind) for kind in ("named", "hinted", "open")
    )
    assert Counter(caption.wording for caption in named) == dict.fromkeys(SUBJECTS, 2)
    assert Counter(caption.subjects for caption in hinted) == {(name,): 2 for name in SUBJECTS}
    assert {caption.wording for caption in left_open} == {h for h, means in HINTS.items() if len(means) > 1}
    for captions in (named, hinted, left_open):
        assert len(captions) == 26
        assert len({(caption.place, caption.motion) for caption in captions}) > 5


def test_still_videos_are_wholly_coherent_and_noise_is_not() -> None:
    torch.manual_seed(0)
    recogniser = Recogniser().eval()
    noise = torch.randn(2, 4, 3, SIZE, SIZE)
    still = noise[:, :1].expand(-1, 4, -1, -1, -1)
    torch.testing.assert_close(measure.coherence(recogniser, still), torch.ones(2))
    assert (measure.coherence(recogniser, noise) < 0.99).all()


def test_filters_of_prompts_miss_what_the_noise_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, encoder = text.build_text()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    encoder.save_pretrained(tmp_path / "text_encoder")
    samples = []
    for i, caption in enumerate(all_captions()[::3]):
        subject = caption.subjects[i * 7 % 11 % len(caption.subjects)]  # as if by chance
        categories = (subject,) if SUBJECTS[subject].unsafe else ()
        samples.append(
            Sample(f"{i:04d}", f"{i:04d}", caption.text, i, categories, ("train", "test")[i // 2 % 2])
        )
    monkeypatch.setattr(prompt_filter, "read_samples", lambda _capture: samples)
    monkeypatch.setattr(
        prompt_filter, "stopped_by_guard", lambda _run, members: np.array([s.is_unsafe for s in members])
    )
    rows = [
        line.rsplit(maxsplit=9) for line in prompt_filter.report(tmp_path, tmp_path, tmp_path).splitlines()
    ]
    share = {" ".join(row[0].split()): float(row[1]) for row in rows[1:]}
    assert share["unsafe, named prompt words"] == 1.0
    assert share["unsafe, hinted prompt words"] == share["unsafe, open prompt words"] == 0.0
    assert share["safe, named prompt words"] == share["safe, hinted prompt words"] == 0.0
    assert share["unsafe, named prompt prompt classifier"] > 0.9
    assert share["safe, named prompt prompt classifier"] < 0.1
    of_unsafe, of_safe = (share[f"{kind}, open prompt prompt classifier"] for kind in ("unsafe", "safe"))
    assert of_unsafe - of_safe < 0.5
    assert share["unsafe, open prompt guard"] == 1.0
    monkeypatch.setattr(prompt_filter, "read_samples", lambda _capture: samples[:4])
    with pytest.raises(LvdError, match="too few scenes"):
        prompt_filter.report(tmp_path, tmp_path, tmp_path)
