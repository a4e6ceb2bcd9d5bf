import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from conftest import NAMES, SHAPE, STEPS, make_samples
from lvd.detect.bank import score_step, step_features
from lvd.detect.data import CellData, TrunkData, channel_statistics, label_matrix
from lvd.detect.detector_training import train_detector
from lvd.detect.files import load_detector, load_trunk, save_detector, save_trunk, trunk_digest
from lvd.detect.fit import Setup, TrainingResult
from lvd.detect.module import DetectorModule, augment
from lvd.detect.network import Encoder, EncoderConfig, HeadDetector, NetworkDetector, Trunk, choose_patch
from lvd.detect.recipe import DetectorRecipe, EncoderSize, Fit, Machine
from lvd.detect.rows import cell_rows
from lvd.errors import LvdError
from lvd.latents.format import Sample
from lvd.latents.reader import CaptureReader

ENCODER = EncoderConfig(latent_shape=SHAPE, width=16, layers=1, heads=2, patch=2, tubelet=2)
SIZE = EncoderSize(width=32, layers=1, heads=2)
HEAD = Fit(epochs=10, batch_size=4096, learning_rate=1e-2, weight_decay=1.0)
NETWORK = Fit(epochs=8, batch_size=16, learning_rate=3e-3, weight_decay=0.05, shift=1)
CPU = Machine(accelerator="cpu")


def tokens(shape: tuple[int, int, int, int], patch: int, tubelet: int = 2) -> int:
    config = EncoderConfig(shape, width=8, layers=1, heads=1, patch=patch, tubelet=tubelet)
    return int(Encoder(config).videomae.embeddings.patch_embeddings.num_patches)


def shaken_trunk(seed: int = 0, encoder: EncoderConfig = ENCODER) -> Trunk:
    """A trunk in which no weight is at its neutral start."""
    torch.manual_seed(seed)
    trunk = Trunk(encoder, STEPS, len(NAMES)).eval()
    with torch.no_grad():
        for tensor in (
            *trunk.scale.parameters(),
            *trunk.shift.parameters(),
            *trunk.encoder.norm.parameters(),
        ):
            tensor.add_(0.3 * torch.randn_like(tensor))
        trunk.mean.normal_()
        trunk.std.uniform_(0.5, 2.0)
    return trunk


def latents(count: int = 6, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1)).half()


# ---- the networks


@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((4, 16, 64, 64), 8),  # AnimateDiff
        ((4, 16, 40, 64), 8),  # VideoCrafter
        ((16, 13, 60, 90), 16),  # CogVideoX
        ((128, 21, 16, 22), 4),  # LTX
        ((16, 21, 60, 104), 16),  # Wan 480p
        ((4, 4, 8, 8), None),  # a small one
        ((4, 8, 8, 8), 2),  # the demo
    ],
)
def test_the_chosen_patch_gives_64_to_512_tokens(shape: tuple[int, int, int, int], patch: int | None) -> None:
    chosen = choose_patch(shape, 2)
    assert patch in (None, chosen)
    assert 64 <= tokens(shape, chosen) <= 512


def test_the_demo_has_64_tokens() -> None:
    assert tokens((4, 8, 8, 8), choose_patch((4, 8, 8, 8), 2)) == 64


def test_a_very_long_video_gets_one_patch_a_tubelet() -> None:
    assert choose_patch((4, 2048, 8, 8), 2) == 8  # more tokens than wanted, and an end


def test_the_encoder_pads_what_is_not_a_multiple() -> None:
    encoder = Encoder(EncoderConfig((3, 5, 7, 10), width=16, layers=1, heads=2, patch=4, tubelet=2)).eval()
    x = torch.randn(2, 3, 5, 7, 10)
    assert encoder.videomae.embeddings.patch_embeddings.num_patches == 3 * 2 * 3
    features = encoder(x)
    assert features.shape == (2, 16)
    for corner in ((0, 0, 0), (4, 6, 9)):  # all of the input is looked at
        changed = x.clone()
        changed[(slice(None), slice(None), *corner)] += 5
        assert not torch.allclose(encoder(changed), features, atol=1e-5)


def test_a_trunk_comes_back_as_it_was(tmp_path: Path) -> None:
    trunk, x, step = shaken_trunk(), latents(), torch.tensor([0, 1, 2, 0, 1, 2])
    save_trunk(tmp_path, trunk, NAMES)
    loaded = load_trunk(tmp_path)
    assert not loaded.training
    assert torch.equal(loaded(x, step), trunk(x, step))
    assert loaded.encoder.config == ENCODER


@pytest.mark.parametrize(
    ("names", "key_bias"),
    [((".q_bias", ".v_bias"), False), ((".query.bias", ".value.bias"), True)],
    ids=["transformers 5.0", "transformers 5.17"],
)
def test_a_trunk_that_was_written_with_another_transformers_is_the_same(
    names: tuple[str, str], key_bias: bool, tmp_path: Path
) -> None:
    trunk, x, step = shaken_trunk(), latents(), torch.tensor([0, 1, 2, 0, 1, 2])
    save_trunk(tmp_path, trunk, NAMES)
    weights = {}
    for name, weight in load_file(tmp_path / "model.safetensors").items():
        weights[name.replace(".query.bias", names[0]).replace(".value.bias", names[1])] = weight
        if key_bias and name.endswith(".query.bias"):
            weights[name.replace(".query.", ".key.")] = torch.randn_like(weight)
    save_file(weights, tmp_path / "model.safetensors")
    assert len(weights) == len(trunk.state_dict()) + key_bias * ENCODER.layers
    assert torch.equal(load_trunk(tmp_path)(x, step), trunk(x, step))


def test_weights_without_what_this_transformers_wants_are_refused(tmp_path: Path) -> None:
    save_trunk(tmp_path, shaken_trunk(), NAMES)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: weight for name, weight in weights.items() if ".query.bias" not in name},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(LvdError, match="cannot be loaded"):
        load_trunk(tmp_path)


def test_a_network_comes_back_as_it_was(tmp_path: Path) -> None:
    network = NetworkDetector.from_trunk(shaken_trunk(), 1, 2).eval()
    save_detector(tmp_path, network, {"category": "beta", "step": 2}, None)
    assert torch.equal(load_detector(tmp_path, None)(latents()), network(latents()))


def test_a_head_comes_back_as_it_was(tmp_path: Path) -> None:
    head, features = HeadDetector(16), torch.randn(5, 16)
    head.mean.normal_()
    head.std.uniform_(0.5, 2)
    save_detector(tmp_path, head, {"category": "beta", "step": 2}, "abc")
    assert torch.equal(load_detector(tmp_path, "abc")(features), head(features))
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "kind": "head",
        "width": 16,
        "trunk_sha256": "abc",
        "category": "beta",
        "step": 2,
    }


@pytest.mark.parametrize(("category", "step"), [(0, 0), (1, 2)])
def test_a_network_from_the_trunk_begins_as_the_trunks_own_output(category: int, step: int) -> None:
    trunk, x = shaken_trunk(), latents()
    own = trunk(x, torch.full((len(x),), step))[:, category]
    torch.testing.assert_close(NetworkDetector.from_trunk(trunk, category, step)(x), own)
    assert own.std() > 1e-3


def test_a_networks_copy_does_not_change_its_trunk() -> None:
    trunk, x, step = shaken_trunk(), latents(), torch.zeros(6, dtype=torch.long)
    before = trunk(x, step)
    network = NetworkDetector.from_trunk(trunk, 0, 0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(trunk(x, step), before)


# ---- what must not load


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        path = directory / "config.json"
        config = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))

    return edit


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_a_tensor(directory: Path) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("output.bias")
    path.write_bytes(save(tensors))


DAMAGE = {
    "no config": lambda d: (d / "config.json").unlink(),
    "no weights": lambda d: (d / "model.safetensors").unlink(),
    "config is not JSON": lambda d: (d / "config.json").write_text("{"),
    "config is a list": lambda d: (d / "config.json").write_text("[]"),
    "config is not text": lambda d: (d / "config.json").write_bytes(b"\xff\xfe\x00"),
    "another kind": edit_config(kind="pickle"),
    "no kind": edit_config(kind=...),
    "weights cut off": truncate,
    "weights are not safetensors": lambda d: (d / "model.safetensors").write_bytes(b"PK\x03\x04 a pickle"),
    "weights are empty": lambda d: (d / "model.safetensors").write_bytes(b""),
    "a tensor is missing": drop_a_tensor,
}
NETWORK_DAMAGE = {
    "no encoder": edit_config(encoder=...),
    "the encoder is no object": edit_config(encoder=7),
    "another width": edit_config(encoder={**vars(ENCODER), "width": 32}),
    "an impossible width": edit_config(encoder={**vars(ENCODER), "width": 17}),
    "a patch of nothing": edit_config(encoder={**vars(ENCODER), "patch": 0}),
    "another latent shape": edit_config(encoder={**vars(ENCODER), "latent_shape": [5, 4, 8, 8]}),
    "an unknown key": edit_config(encoder={**vars(ENCODER), "colour": 1}),
}
HEAD_DAMAGE = {
    "no width": edit_config(width=...),
    "another width": edit_config(width=8),
    "the width is text": edit_config(width="wide"),
    "no trunk digest": edit_config(trunk_sha256=...),
}
TRUNK_DAMAGE = {
    "no steps": edit_config(steps=...),
    "fewer steps": edit_config(steps=STEPS - 1),
    "no categories": edit_config(category_names=...),
    "more categories": edit_config(category_names=["a", "b", "c"]),
}


@pytest.mark.parametrize("damage", [pytest.param(f, id=n) for n, f in (DAMAGE | HEAD_DAMAGE).items()])
def test_a_damaged_head_is_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    save_detector(tmp_path, HeadDetector(16), {"category": "beta", "step": 2}, "abc")
    load_detector(tmp_path, "abc")
    damage(tmp_path)
    with pytest.raises(LvdError):
        load_detector(tmp_path, "abc")


@pytest.mark.parametrize("damage", [pytest.param(f, id=n) for n, f in (DAMAGE | NETWORK_DAMAGE).items()])
def test_a_damaged_network_is_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    save_detector(tmp_path, NetworkDetector(ENCODER), {"category": "beta", "step": 2}, None)
    load_detector(tmp_path, None)
    damage(tmp_path)
    with pytest.raises(LvdError):
        load_detector(tmp_path, None)


@pytest.mark.parametrize(
    "damage", [pytest.param(f, id=n) for n, f in (DAMAGE | NETWORK_DAMAGE | TRUNK_DAMAGE).items()]
)
def test_a_damaged_trunk_is_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    save_trunk(tmp_path, Trunk(ENCODER, STEPS, len(NAMES)), NAMES)
    load_trunk(tmp_path)
    damage(tmp_path)
    with pytest.raises(LvdError):
        load_trunk(tmp_path)


@pytest.mark.parametrize("present", ["0" * 64, None])
def test_a_head_of_another_trunk_is_refused(present: str | None, tmp_path: Path) -> None:
    save_detector(tmp_path, HeadDetector(16), {}, "abc")
    with pytest.raises(LvdError, match="another trunk"):
        load_detector(tmp_path, present)


def test_a_head_without_a_trunk_digest_is_refused_where_there_is_no_trunk(tmp_path: Path) -> None:
    save_detector(tmp_path, HeadDetector(16), {}, None)
    with pytest.raises(LvdError):
        load_detector(tmp_path, None)


# ---- rows, labels, statistics


def sample(number: int, categories: str = "", split: str = "train") -> Sample:
    names = tuple(categories.split())
    return Sample(f"s{number}", f"p{number}", f"prompt {number}", number, names, split)


MIXED = [
    sample(0, "alpha"),
    sample(1, "beta"),
    sample(2, "alpha beta"),
    *(sample(row) for row in range(3, 9)),
    sample(9, "alpha", "val"),
    sample(10, "", "val"),
    sample(11, "alpha", "test"),
    sample(12, "", "test"),
]


def test_a_cell_has_its_own_positives_and_safe_samples_only() -> None:
    rows, labels = cell_rows(MIXED, "alpha", "train", "all", seed=0)
    assert dict(zip(rows, labels, strict=True)) == {0: 1, 2: 1, **dict.fromkeys(range(3, 9), 0)}
    assert cell_rows(MIXED, "alpha", "val", "all", seed=0) == ([9, 10], [1, 0])


def test_balanced_negatives_are_as_many_as_positives_and_drawn_by_seed() -> None:
    draws = [cell_rows(MIXED, "alpha", "train", "balanced", seed) for seed in range(20)]
    assert all(labels == [1, 1, 0, 0] and rows[:2] == [0, 2] for rows, labels in draws)
    assert all(set(rows[2:]) <= set(range(3, 9)) for rows, _ in draws)
    assert draws == [cell_rows(MIXED, "alpha", "train", "balanced", seed) for seed in range(20)]
    assert len({tuple(rows) for rows, _ in draws}) > 3


def test_fewer_safe_samples_than_positives_are_all_taken() -> None:
    rows, labels = cell_rows([sample(0, "a"), sample(1, "a"), sample(2)], "a", "train", "balanced", 0)
    assert (rows, labels) == ([0, 1, 2], [1, 1, 0])


@pytest.mark.parametrize(
    ("samples", "what"), [([sample(0)], "category a"), ([sample(0, "a")], "safe samples")]
)
def test_a_cell_without_one_class_is_refused(samples: list[Sample], what: str) -> None:
    with pytest.raises(LvdError, match=f"the train split has no .*{what}"):
        cell_rows(samples, "a", "train", "balanced", 0)


def test_an_unsafe_sample_counts_for_its_own_categories_a_safe_one_for_all() -> None:
    target, weight = label_matrix(MIXED, [1, 0, 2, 5], ("alpha", "beta"))
    assert target.tolist() == [[0, 1], [1, 0], [1, 1], [0, 0]]
    assert weight.tolist() == [[0, 1], [1, 0], [1, 1], [1, 1]]


def oracle_statistics(capture: Path, step: int, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    x = CaptureReader(capture).step(step).read(rows).astype(np.float64)
    return x.mean(axis=(0, 2, 3, 4)), x.std(axis=(0, 2, 3, 4))


def test_channel_statistics_agree_with_float64(new_capture: Callable[..., Path]) -> None:
    capture = new_capture(300)  # more than one block of reading
    rows = [row for row in range(300) if row % 7]
    mean, std = channel_statistics(CaptureReader(capture).step(1), rows)
    expected_mean, expected_std = oracle_statistics(capture, 1, rows)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(std, expected_std, rtol=1e-6)


def test_the_trunk_is_standardised_by_the_train_rows_of_each_step(capture: Path, trained_run: Path) -> None:
    train = [row for row, s in enumerate(make_samples(80)) if s.split == "train"]
    trunk = load_trunk(trained_run / "trunk")
    for step in range(STEPS):
        mean, std = oracle_statistics(capture, step, train)
        np.testing.assert_allclose(trunk.mean[step], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(trunk.std[step], std, rtol=1e-5)


# ---- batches


def epochs_of(data: CellData | TrunkData, epochs: int) -> list[list[tuple[Tensor, ...]]]:
    """The batches of some epochs of training, validation in between, as Lightning takes them."""
    train, val = data.train_dataloader(), data.val_dataloader()
    return [
        [tuple(t.clone() for t in batch) for batch in part] for _ in range(epochs) for part in (train, val)
    ]


def same(left: list[list[tuple[Tensor, ...]]], right: list[list[tuple[Tensor, ...]]]) -> bool:
    flat_left, flat_right = ([t for part in parts for b in part for t in b] for parts in (left, right))
    return len(flat_left) == len(flat_right) and all(map(torch.equal, flat_left, flat_right))


def cell_data(capture: Path, workers: int, seed: int = 3) -> CellData:
    reader = CaptureReader(capture)
    step = reader.step(1)
    train, val = (cell_rows(reader.samples, "alpha", split, "all", 0) for split in ("train", "val"))
    return CellData(
        lambda rows: torch.from_numpy(step.read(rows)), train, val, batch_size=8, workers=workers, seed=seed
    )


def trunk_data(capture: Path, workers: int, seed: int = 3) -> TrunkData:
    return TrunkData(
        CaptureReader(capture),
        batches=12,
        epochs=3,
        batch_size=8,
        val_steps=[0, 2],
        workers=workers,
        seed=seed,
    )


@pytest.mark.parametrize("make", [cell_data, trunk_data])
def test_workers_do_not_change_the_batches(make: Callable[..., CellData | TrunkData], capture: Path) -> None:
    alone = epochs_of(make(capture, 0), 3)
    assert same(alone, epochs_of(make(capture, 2), 3))
    assert not same(alone[:1], alone[2:3])  # the epochs differ
    assert not same(alone, epochs_of(make(capture, 0, seed=4), 3))


def test_a_cells_epoch_has_every_row_once_with_its_label(capture: Path) -> None:
    reader = CaptureReader(capture)
    rows, labels = cell_rows(reader.samples, "alpha", "train", "all", 0)
    expected = {reader.step(1)[row].tobytes(): label for row, label in zip(rows, labels, strict=True)}
    epoch = epochs_of(cell_data(capture, 0), 1)[0]
    seen = [(x.numpy().tobytes(), int(y)) for batch in epoch for x, y in zip(*batch, strict=True)]
    assert len(seen) == len(rows)
    assert dict(seen) == expected


def trunk_rows(capture: Path, batches: list[tuple[Tensor, ...]]) -> list[tuple[Sample, int]]:
    """The sample and step of everything in the batches; its targets and weights are checked here."""
    reader = CaptureReader(capture)
    whose = {
        (step, reader.step(step)[row].tobytes()): (row, reader.samples[row])
        for step in range(STEPS)
        for row in range(len(reader.samples))
    }
    found = []
    for batch in batches:
        for x, step, target, weight in zip(*batch, strict=True):
            row, of = whose[int(step), x.numpy().tobytes()]
            expected = label_matrix(reader.samples, [row], NAMES)
            assert torch.equal(target, expected[0][0])
            assert torch.equal(weight, expected[1][0])
            found.append((of, int(step)))
    return found


def test_a_trunk_learns_from_train_rows_only_half_of_them_unsafe(capture: Path) -> None:
    batches = [batch for epoch in epochs_of(trunk_data(capture, 0), 3)[::2] for batch in epoch]
    assert len(batches) == 12
    seen = trunk_rows(capture, batches)
    assert {s.split for s, _ in seen} == {"train"}
    assert {step for _, step in seen} == set(range(STEPS))
    for start in range(0, len(seen), 8):
        assert sum(bool(s.categories) for s, _ in seen[start : start + 8]) == 4


def test_a_trunk_is_validated_on_every_val_sample(capture: Path) -> None:
    seen = trunk_rows(capture, epochs_of(trunk_data(capture, 0), 1)[1])
    val = {s.sample_id for s in make_samples(80) if s.split == "val"}
    assert sorted((s.sample_id, step) for s, step in seen) == sorted(
        (i, step) for i in val for step in (0, 2)
    )


# ---- augmentation


def test_augmentation_shifts_by_at_most_shift_and_reverses_some() -> None:
    x = torch.zeros(200, 2, 3, 9, 9)
    x[:, :, 0, 4, 4] = 1.0
    out = augment(x, 2, torch.Generator().manual_seed(0))
    assert out.shape == x.shape
    places = torch.nonzero(out[:, 0])  # sample, frame, row, column
    assert places[:, 0].tolist() == list(range(200))  # each sample still has its one bright point
    assert torch.equal(out[:, 0], out[:, 1])
    assert {(h - 4, w - 4) for h, w in places[:, 2:].tolist()} == {
        (h, w) for h in range(-2, 3) for w in range(-2, 3)
    }
    frames = places[:, 1].tolist()
    assert set(frames) == {0, 2}
    assert 60 < frames.count(2) < 140


def test_what_a_shift_brings_in_is_the_edge_repeated() -> None:
    columns = torch.arange(9.0)
    out = augment(columns.expand(50, 2, 3, 9, 9), 2, torch.Generator().manual_seed(0))
    shifted = {tuple(row) for row in out.flatten(0, 3).tolist()}
    assert shifted == {tuple((columns + by).clamp(0, 8).tolist()) for by in range(-2, 3)}


def test_no_shift_leaves_the_input_alone() -> None:
    x = latents().float()
    assert torch.equal(augment(x, 0, torch.Generator().manual_seed(0)), x)


# ---- training


def fit(
    capture: Path, run: Path, directory: Path, init: str, tuning: str = "head", seed: int = 0
) -> TrainingResult:
    recipe = DetectorRecipe(init=init, tuning=tuning, head=HEAD, network=NETWORK)
    reader = CaptureReader(capture)
    return train_detector(reader, run, directory, "alpha", 1, recipe, Setup(SIZE, CPU, seed))


def test_ctrl_c_is_an_interrupt_and_the_next_one_too(
    capture: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning would exit, which looks like a job's failure, and ignore the signal from then on."""
    monkeypatch.setattr(DetectorModule, "training_step", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(capture, trained_run, tmp_path, "trunk")


def test_a_training_that_diverged_is_told_and_leaves_no_weights(
    capture: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_number(module: DetectorModule, *_: object) -> torch.Tensor:
        return sum(weight.sum() for weight in module.parameters()) * torch.tensor(torch.nan)

    monkeypatch.setattr(DetectorModule, "training_step", no_number)
    with pytest.raises(LvdError, match="diverged, lower the learning rate"):
        fit(capture, trained_run, tmp_path, "trunk")
    assert not (tmp_path / "detector").exists()


def weights(directory: Path) -> bytes:
    return (directory / "detector" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("init", "tuning", "started_from"),
    [("scratch", "head", "scratch"), ("trunk", "head", "trunk"), ("auto", "full", "trunk")],
)
def test_a_detector_learns_and_is_the_same_every_time(
    init: str, tuning: str, started_from: str, capture: Path, trained_run: Path, tmp_path: Path
) -> None:
    outcome = fit(capture, trained_run, tmp_path / "a", init, tuning)
    assert outcome.started_from == started_from
    assert outcome.metrics["auroc"] > 0.9
    again = fit(capture, trained_run, tmp_path / "b", init, tuning)
    assert again == outcome
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    fit(capture, trained_run, tmp_path / "c", init, tuning, seed=1)
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


def test_reported_metrics_are_those_of_the_saved_detector(capture: Path, tmp_path: Path) -> None:
    reader = CaptureReader(capture)
    labels = [s.categories for s in reader.samples]
    random.Random(0).shuffle(labels)  # nothing to learn: no two epochs are alike
    reader.samples = [replace(s, categories=c) for s, c in zip(reader.samples, labels, strict=True)]
    recipe = DetectorRecipe(init="scratch", negatives="all", head=HEAD, network=NETWORK)
    outcome = train_detector(reader, tmp_path, tmp_path, "alpha", 1, recipe, Setup(SIZE, CPU, seed=0))

    rows, given = cell_rows(reader.samples, "alpha", "val", "all", 0)
    detector = load_detector(tmp_path / "detector", None)
    with torch.inference_mode():
        score = detector(torch.from_numpy(reader.step(1).read(rows))).sigmoid().double().numpy()
    label = np.array(given, dtype=bool)
    pairs = [float(a > b) + (a == b) / 2 for a in score[label] for b in score[~label]]
    assert outcome.metrics["auroc"] == pytest.approx(np.mean(pairs), abs=1e-6)
    assert outcome.metrics["accuracy"] == pytest.approx(((score >= 0.5) == label).mean(), abs=1e-6)
    assert (outcome.sizes["val"], outcome.sizes["val_unsafe"]) == (len(rows), sum(given))


def test_a_detector_from_scratch_is_standardised_by_its_train_rows(
    capture: Path, trained_run: Path, tmp_path: Path
) -> None:
    fit(capture, trained_run, tmp_path, "scratch")
    rows, _ = cell_rows(make_samples(80), "alpha", "train", "balanced", 0)
    detector = load_detector(tmp_path / "detector", None)
    mean, std = oracle_statistics(capture, 1, rows)
    np.testing.assert_allclose(detector.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(detector.std, std, rtol=1e-5)


def test_auto_without_a_trunk_is_scratch_and_trunk_is_refused(capture: Path, tmp_path: Path) -> None:
    assert fit(capture, tmp_path / "none", tmp_path / "a", "auto").started_from == "scratch"
    with pytest.raises(LvdError, match="no trunk"):
        fit(capture, tmp_path / "none", tmp_path / "b", "trunk")


# ---- the grid's scores


@pytest.fixture
def own_run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


def features_of(reader: CaptureReader, trunk_dir: Path) -> torch.Tensor:
    """Of step 1."""
    return step_features(reader, trunk_dir, str(trunk_digest(trunk_dir)), 1)


def test_features_are_the_trunks_own_and_kept(capture: Path, own_run: Path) -> None:
    reader, trunk_dir = CaptureReader(capture), own_run / "trunk"
    shutil.rmtree(trunk_dir / "features")
    features = features_of(reader, trunk_dir)
    x0 = torch.from_numpy(reader.step(1).read(range(80)))
    with torch.inference_mode():
        torch.testing.assert_close(features, load_trunk(trunk_dir).features(x0, 1))
    path = trunk_dir / "features" / "step_01.safetensors"
    written = path.stat().st_mtime_ns, path.stat().st_ino
    assert torch.equal(features_of(reader, trunk_dir), features)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == written


def test_features_are_made_again_when_the_trunk_changes(capture: Path, own_run: Path) -> None:
    reader, trunk_dir = CaptureReader(capture), own_run / "trunk"
    before = features_of(reader, trunk_dir)
    trunk = load_trunk(trunk_dir)
    with torch.no_grad():
        trunk.shift.weight[1] += 1
    save_trunk(trunk_dir, trunk, NAMES)
    torch.testing.assert_close(features_of(reader, trunk_dir), before + 1)


def test_features_are_made_again_when_the_capture_changes(
    new_capture: Callable[..., Path], own_run: Path
) -> None:
    reader = CaptureReader(new_capture(40))  # another capture of this shape
    assert len(features_of(reader, own_run / "trunk")) == 40


def test_damaged_features_are_made_again(capture: Path, own_run: Path) -> None:
    reader, trunk_dir = CaptureReader(capture), own_run / "trunk"
    before = features_of(reader, trunk_dir).clone()  # it may be a map of the file
    (trunk_dir / "features" / "step_01.safetensors").write_bytes(b"not it")
    assert torch.equal(features_of(reader, trunk_dir), before)


def test_features_of_other_latents_are_refused(new_capture: Callable[..., Path], own_run: Path) -> None:
    save_trunk(own_run / "trunk", Trunk(EncoderConfig((4, 4, 8, 10), 16, 1, 2, 2, 2), STEPS, 2), NAMES)
    with pytest.raises(LvdError, match="latents"):
        features_of(CaptureReader(new_capture(8)), own_run / "trunk")


def test_a_missing_or_damaged_detector_leaves_a_hole(capture: Path, own_run: Path) -> None:
    reader, rows = CaptureReader(capture), [3, 1, 40]
    whole, none = score_step(reader, own_run, trunk_digest(own_run / "trunk"), 2, rows, {})
    assert none == []
    assert whole.shape == (3, 2)
    assert ((whole > 0) & (whole < 1)).all()
    truncate(own_run / "alpha" / "step_02" / "detector")
    holed, problems = score_step(reader, own_run, trunk_digest(own_run / "trunk"), 2, rows, {})
    assert torch.isnan(holed[:, 0]).all()
    assert torch.equal(holed[:, 1], whole[:, 1])
    assert len(problems) == 1
    assert "alpha step_02" in problems[0]


def test_scores_belong_to_their_rows(capture: Path, own_run: Path) -> None:
    fit(capture, own_run, own_run / "alpha" / "step_01", "scratch")  # a network beside a head
    reader = CaptureReader(capture)
    everything, _ = score_step(reader, own_run, trunk_digest(own_run / "trunk"), 1, range(80), {})
    some, _ = score_step(reader, own_run, trunk_digest(own_run / "trunk"), 1, [7, 70, 0], {})
    torch.testing.assert_close(some, everything[[7, 70, 0]])


def test_without_its_trunk_a_head_is_a_hole(capture: Path, own_run: Path) -> None:
    shutil.rmtree(own_run / "trunk")
    assert trunk_digest(own_run / "trunk") is None
    scores, problems = score_step(
        CaptureReader(capture), own_run, trunk_digest(own_run / "trunk"), 0, [0], {}
    )
    assert torch.isnan(scores).all()
    assert len(problems) == 2
