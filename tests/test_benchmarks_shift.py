"""The measurements beyond the training distribution: their rows, truth, journal and attack."""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from conftest import NAMES, bundle_info
from support.commands import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import attack
import beyond
import pgd
import shift
from beyond import Journal, Truth
from surrogate import Surrogate, generators, margins

from lvd.decide.sequential import Evidence, Sequential
from lvd.demo.draw import GENERATOR
from lvd.demo.recogniser import THINGS, Recogniser, Verdict
from lvd.demo.scenes import PLACES, SUBJECTS, Caption, all_captions, caption_of
from lvd.errors import LvdError
from lvd.guard.bundle import Bundle
from lvd.guard.guard import Guard
from lvd.latents.format import Sample
from lvd.sampling.tap import tap_x0

CAPTIONS = all_captions()[::7]
GORE = Verdict("gore", "stone cell", sure=1.0, steady=1.0)


# ---- rows


def words(prompt: str) -> list[str]:
    return prompt.replace(",", " ,").split()


def test_every_rows_prompts_are_of_words_that_the_generator_knows_and_none_is_cut_off() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(GENERATOR / "tokenizer")
    known = {word for caption in all_captions() for word in words(caption.text)}
    for row in shift.all_rows(all_captions()):
        for prompt in row.prompts:
            assert set(words(prompt)) <= known, prompt
            assert len(tokenizer(prompt).input_ids) <= tokenizer.model_max_length, prompt


def test_rows_differ_from_the_control_in_what_their_names_say() -> None:
    control, *others = shift.all_rows(CAPTIONS)
    rows = {row.name: row for row in others}
    captions = [caption_of(prompt) for prompt in control.prompts]
    assert sorted(control.prompts) == sorted(caption.text for caption in CAPTIONS)
    assert [caption.unsafe for caption in captions[:6]] == [True, False, None] * 2
    assert (control.call, control.scheduler) == ({}, None)
    for name, call in (("guidance 3", {"guidance_scale": 3.0}), ("25 steps", {"num_inference_steps": 25})):
        assert (rows[name].call, rows[name].prompts) == (call, control.prompts)
    assert rows["Euler"].scheduler == "EulerDiscreteScheduler"
    for caption, prompt in zip(captions, rows["other phrasing"].prompts, strict=True):
        assert set(words(caption.text)) - set(words(prompt)) <= {"in"}
        assert set(words(prompt)) <= set(words(caption.text))
        assert prompt != caption.text
    assert {caption_of(one).wording for one in rows["look-alikes only"].prompts} == set(shift.LOOK_ALIKES)
    for row, kind in (("hints only", "hinted"), ("open prompts only", "open")):
        assert {caption_of(prompt).kind for prompt in rows[row].prompts} == {kind}
    assert rows["two subjects"].look is beyond.by_presence
    for prompt in rows["two subjects"].prompts:
        first, _, second = prompt.partition(" in the ")[0].partition(", ")
        assert first in SUBJECTS
        assert second in SUBJECTS
        assert first != second


def test_only_test_prompts_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, splits = CAPTIONS[:9], ["train", "val", "test"] * 3
    monkeypatch.setattr(beyond, "read_samples", lambda capture: samples(chosen, splits))
    assert beyond.unseen_captions(tmp_path) == chosen[2::3]
    monkeypatch.setattr(beyond, "read_samples", lambda capture: samples(chosen, ["train"] * 9))
    with pytest.raises(LvdError, match="no test samples"):
        beyond.unseen_captions(tmp_path)
    with pytest.raises(LvdError, match="no test prompts for the row 'look-alikes only'"):
        shift.all_rows([Caption("what was left", "stone cell", "at rest")])
    with pytest.raises(LvdError, match=r"--rows 'Eulr': there are .*'Euler'"):
        shift.chosen(shift.all_rows(CAPTIONS), ["Eulr"])


def samples(captions: Sequence[Caption], splits: Sequence[str]) -> list[Sample]:
    return [
        Sample(f"s{i}", caption.text, caption.text, i, (), split)  # type: ignore[arg-type]
        for i, (caption, split) in enumerate(zip(captions, splits, strict=True))
    ]


# ---- truth


class Told(Recogniser):
    """Sees in the n-th video, whose pixels are all n / 10, things with these probabilities."""

    def __init__(self, *shown: dict[str, float]) -> None:
        super().__init__()
        self.shown = shown

    def forward(self, frames: Tensor) -> Tensor:
        logits = torch.full((len(frames), len(THINGS) + len(PLACES)), -10.0)
        for row, number in enumerate((frames.mean(dim=(1, 2, 3)) * 10).round().long().tolist()):
            for name, probability in self.shown[number].items():
                logits[row, THINGS.index(name)] = math.log(probability / (1 - probability))
        return logits


def videos(count: int) -> Tensor:
    return (torch.arange(count) / 10).reshape(-1, 1, 1, 1, 1).expand(-1, 2, 3, 4, 4)


def test_truth_is_what_is_shown_and_what_is_unclear_has_none() -> None:
    recogniser = Told({"gore": 0.999}, {"lamp": 0.999}, {"gore": 0.9}, {"gore": 0.99, "lamp": 0.99}, {})
    of_one = beyond.by_subject(recogniser, videos(5))
    assert [one.unsafe for one in of_one] == [True, False, None, None, False]
    of_two = beyond.by_presence(recogniser, videos(5))
    assert [one.unsafe for one in of_two] == [True, False, None, True, False]
    assert [one.shows for one in of_two] == ["gore", "lamp", "empty room", "gore + lamp", "empty room"]


def test_frames_go_to_the_recogniser_in_its_range_and_axes() -> None:
    frames = np.zeros((2, 4, 5, 3), np.float32)
    frames[..., 1] = 1
    seen = beyond.as_videos([frames])
    assert seen.shape == (1, 2, 3, 4, 5)
    assert seen[0, 0, :, 0, 0].tolist() == [-1, 1, -1]


# ---- the table


def record(
    prompt: str, unsafe: bool | None, outcome: str, step: int | None = 3, **more: Any
) -> dict[str, Any]:
    values = {"prompt": prompt, "shows": "?", "unsafe": unsafe, "outcome": outcome, "step": step}
    return {**values, "why": "", "refused": False, "mismatches": [], **more}


def test_unclear_videos_count_nowhere_and_unchecked_ones_count_against_the_guard() -> None:
    found = shift.summarise(
        "a row",
        [
            record("a", True, "unsafe", 3),
            record("b", True, "unsafe", 8),
            record("c", True, "unchecked", 24),
            record("d", False, "safe", 49),
            record("e", False, "unchecked", 24),
            record("f", None, "unsafe", 40),
            record("g", None, "unchecked", 40),
        ],
    )
    assert (found["n"], found["unclear"], found["unsafe"], found["safe"]) == (7, 2, 3, 2)
    assert (found["caught"], found["blocked"], found["unchecked"]) == (2, 1, 2)
    assert found["steps_mean_caught"] == 6.5  # from 1, of the caught ones that count
    assert found["caught_in_words"].startswith("2 of 3: 66.7% (95% interval 20.8% to 93.9%)")
    assert found["caught_ci"] == pytest.approx((0.208, 0.939), abs=1e-3)
    assert shift.guard_in_words(found) == "as made for"
    assert shift.summarise("none", [])["caught_in_words"] == "0 of 0"


def test_videos_of_one_prompt_are_one_unit() -> None:
    found = shift.summarise("a row", [record("a", True, "unsafe") for _ in range(20)])
    assert found["caught_in_words"] == "20 of 20 (of 1 prompt): at least 5.0% (one-sided, 95% confidence)"


def test_the_csv_has_every_number_of_the_table(tmp_path: Path) -> None:
    refused = {"refused": True, "mismatches": ["guidance_scale is 3.0, not 1.0", "another"]}
    summaries = [
        shift.summarise("a, row", [record("a", True, "unsafe", **refused)]),
        shift.summarise("b", []),
    ]
    assert shift.guard_in_words(summaries[0]).startswith(
        "refused, unless allowed: guidance_scale is 3.0, not 1"
    )
    shift.write_csv(tmp_path / "table.csv", summaries)
    header, first, second = (tmp_path / "table.csv").read_text().splitlines()
    assert header.startswith("row,n,unclear,unsafe,safe,caught,caught_in_words,blocked,")
    assert first.startswith('"a, row",1,0,1,0,1,')
    assert "guidance_scale is 3.0, not 1.0|another" in first
    assert second.startswith("b,0,0,0,0,0,0 of 0,")


# ---- the journal


def test_an_interrupted_measurement_goes_on_and_half_a_line_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "run" / "shift.jsonl"
    Journal(path, "one").add(["a", {"x": 1.5}], {"unsafe": None})
    Journal(path, "other").add(["b"], 2)
    with path.open("a") as file:
        file.write('{"of": "one", "key": ["c"], "va')  # killed here
    journal = Journal(path, "one")
    assert journal.get(["a", {"x": 1.5}]) == {"unsafe": None}
    assert journal.get(["b"]) is journal.get(["c"]) is None
    journal.add(["c"], 3)
    again = Journal(path, "one")
    assert [again.get(["a", {"x": 1.5}]), again.get(["c"]), Journal(path, "other").get(["b"])] == [
        {"unsafe": None},
        3,
        2,
    ]


def test_other_weights_are_another_measurement(tmp_path: Path) -> None:
    (tmp_path / "generator").mkdir()
    weights = tmp_path / "generator" / "weights"
    weights.write_text("1")
    first = beyond.digest_of(tmp_path / "generator")
    assert beyond.digest_of(tmp_path / "generator") == first
    weights.write_text("2")
    assert beyond.digest_of(tmp_path / "generator") != first


# ---- measuring a row


class Constant(nn.Module):
    """Detectors that say the same of every x0."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, step: int, x0: Tensor) -> Tensor:
        return torch.full((len(x0), len(NAMES)), self.logit)


def guards(pipe: Any, logit: float) -> shift.Guards:
    """Of a bundle of two steps, both of which decide."""
    info = bundle_info(pipe, steps=2, eta=2, lam=0.5, guidance=1.0)
    return shift.Guards.of(Bundle(info, "d" * 64, Constant(logit)))  # type: ignore[arg-type]


def look(recogniser: Any, frames: Tensor) -> list[Truth]:
    assert frames.shape[1:] == (8, 3, 32, 32)
    assert frames.abs().max() <= 1
    return [Truth("gore", True) for _ in frames]


def test_a_row_is_sampled_once_and_says_what_the_guard_refused(tiny_pipeline: Any, tmp_path: Path) -> None:
    def measured(row: shift.Row, logit: float, videos: int = 1) -> list[dict[str, Any]]:
        journal = Journal(tmp_path / "shift.jsonl", f"of {logit}")
        return shift.measure(row, guards(tiny_pipeline, logit), tiny_pipeline, None, journal, videos, seed=5)  # type: ignore[arg-type]

    own, prompts = tiny_pipeline.scheduler, ("a red one", "a blue two")
    control = shift.Row("control", prompts, look=look)
    found = measured(control, 4.0, videos=2)
    assert [(one["prompt"], one["outcome"], one["step"], one["refused"]) for one in found] == [
        ("a red one", "unsafe", 0, False),
        ("a blue two", "unsafe", 0, False),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shift, "as_videos", lambda videos: pytest.fail("sampled again"))
        assert measured(control, 4.0, videos=2) == found
    assert [one["prompt"] for one in measured(control, 4.0, videos=3)] == [*prompts, prompts[0]]

    guided = measured(replace(control, name="guided", call={"guidance_scale": 1.5}), -4.0)
    assert {one["outcome"] for one in guided} == {"safe"}
    assert all(one["refused"] for one in guided)
    assert guided[0]["mismatches"] == ["guidance_scale is 1.5, not 1.0"]

    few = shift.Row("few", prompts, {"num_inference_steps": 1}, look=look)
    assert {one["outcome"] for one in measured(few, 4.0)} == {"unsafe"}
    assert {(one["outcome"], one["why"]) for one in measured(few, -4.0)} == {
        ("unchecked", "1 steps are too few to decide by: 2 are needed")
    }
    more = measured(shift.Row("more", prompts, {"num_inference_steps": 3}, look=look), -4.0)
    assert {(one["outcome"], one["step"]) for one in more} == {("safe", 1)}

    for scheduler in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        other = measured(shift.Row(scheduler, prompts, scheduler=scheduler, look=look), -4.0)
        assert {one["outcome"] for one in other} == {"safe"}
        assert other[0]["mismatches"][0] == f"the scheduler is {scheduler}, not DDIMScheduler"
        assert tiny_pipeline.scheduler is own


# ---- projected gradient descent


def linear(weight: Tensor, bias: Tensor | float = 0.0) -> Callable[[Tensor], pgd.Seen]:
    """A detector whose margin is linear in the noise `[B, D]`."""

    def see(point: Tensor) -> pgd.Seen:
        margin = point @ weight + bias
        return pgd.Seen(margin, margin.detach(), torch.ones(len(point), dtype=torch.bool))

    return see


NOISE = torch.randn(200, 32, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_an_attack_stays_within_its_budget_and_lowers_the_loss(norm: pgd.Norm) -> None:
    for budget in (0.05, 0.4):
        found = pgd.pgd(linear(WEIGHT, 9.0), NOISE, budget, norm, 10)
        assert pgd.size(found.best - NOISE, norm).max() <= budget * (1 + 1e-5)
        means = [losses.mean().item() for losses in found.losses]
        assert means[-1] < means[1] < means[0]
        # The best that can be done to a linear detector is known.
        best = budget * (WEIGHT.norm() * 32**0.5 if norm == "l2" else WEIGHT.abs().sum())
        assert (NOISE @ WEIGHT + 9.0 - found.margin_B).numpy() == pytest.approx(float(best), rel=1e-3)


def test_projection_moves_nothing_that_is_within_the_budget() -> None:
    offset = torch.tensor([[3.0, -4.0], [0.3, -0.4]])
    torch.testing.assert_close(pgd.project(offset, 1.0, "linf"), torch.tensor([[1.0, -1.0], [0.3, -0.4]]))
    half = 1 / 2**0.5  # of root mean square 1
    torch.testing.assert_close(pgd.project(offset, half, "l2"), torch.tensor([[0.6, -0.8], [0.3, -0.4]]))
    assert torch.equal(pgd.project(offset, math.inf, "l2"), offset)
    assert torch.equal(pgd.project(offset, math.inf, "linf"), offset)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_caught_falls_with_the_budget_from_the_unattacked_rate_to_none(norm: pgd.Norm) -> None:
    bias = 5.0  # most are caught
    caught = [
        float((pgd.pgd(linear(WEIGHT, bias), NOISE, budget, norm, 40).margin_B > 0).float().mean())
        for budget in (0.0, 0.05, 0.1, 0.3, math.inf)
    ]
    assert caught[0] == float((NOISE @ WEIGHT + bias > 0).float().mean()) > 0.7
    assert caught == sorted(caught, reverse=True)
    assert caught[1] > caught[2]
    assert caught[-1] == 0


def test_no_budget_leaves_the_noise_as_it_was_drawn() -> None:
    found = pgd.pgd(linear(WEIGHT, 9.0), NOISE, 0.0, "l2", 10)
    assert torch.equal(found.best, NOISE)
    assert len(found.losses) == 1


def test_a_noise_whose_video_became_safe_is_not_the_attackers_choice() -> None:
    def see(point: Tensor) -> pgd.Seen:
        margin = point.sum(dim=1) + 9
        return pgd.Seen(margin, margin.detach(), (point.detach() > -0.35).all(dim=1))

    found = pgd.pgd(see, torch.zeros(3, 4), 1.0, "linf", 10)
    assert found.best.min() == pytest.approx(-0.25)  # in steps of a quarter
    assert found.losses[-1].max() < found.margin_B.min()


# ---- what is attacked


class Brightness(nn.Module):
    """The logit of a category is the mean of the channel of its number, times `gain`."""

    def __init__(self, gain: float = 2.0) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, step: int, x0: Tensor) -> Tensor:
        return self.gain * x0[:, : len(NAMES)].mean(dim=(2, 3, 4))


def sequential(steps: int = 3, boundary: float = 0.0, **changes: Any) -> Sequential:
    weight = np.linspace(0.2, 1.0, steps * len(NAMES)).reshape(steps, -1)
    evidence = Evidence(weight, weight + 0.5, weight - 0.4)
    policy = ("block",) * len(NAMES)
    return replace(Sequential(evidence, (boundary,) * len(NAMES), policy, 0.05, "marginal", 19), **changes)


def surrogate(pipe: Any, rule: Any, every: int, detectors: nn.Module | None = None, **info: Any) -> Surrogate:
    torch.manual_seed(0)
    made_for = bundle_info(pipe, rule=rule, steps=3, **info)
    network = Recogniser().eval().requires_grad_(False)
    return Surrogate(pipe, made_for, detectors or Brightness(), network, every, keep=1.0)  # type: ignore[arg-type]


def test_the_margins_of_the_attack_are_the_rules() -> None:
    logits = (
        torch.randn(50, 3, len(NAMES), generator=torch.Generator().manual_seed(0)) * 6
    )  # some are cut off
    assert logits.abs().max() > 7
    for rule in (sequential(boundary=1.0), sequential(policy=("block", "allow"))):
        expected = rule.margins(logits.sigmoid().double().numpy())
        kept = [column for column, policy in enumerate(rule.policy) if policy == "block"]
        found = margins(rule, logits).numpy()
        np.testing.assert_allclose(found, expected[:, :, kept], atol=1e-3)


@pytest.mark.parametrize("ddim_eta", [0.0, 1.0])
def test_the_attack_samples_as_the_pipeline_does(tiny_pipeline: Any, ddim_eta: float) -> None:
    noise, prompts = (
        torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0)),
        ["a red one"],
    )
    heard: list[Tensor] = []
    with tap_x0(tiny_pipeline.scheduler, lambda step, timestep, x0: heard.append(x0.clone())):
        expected = tiny_pipeline(
            prompts,
            latents=noise,
            num_frames=8,
            height=32,
            width=32,
            num_inference_steps=3,
            guidance_scale=5.0,
            eta=ddim_eta,
            generator=generators([3]),
            output_type="latent",
        ).frames
    for every in (1, 2):
        attacked = surrogate(tiny_pipeline, sequential(), every, call={"eta": ddim_eta})
        embedded = attacked.embed(prompts)
        x0, latents = attacked.sample(noise.clone().requires_grad_(), embedded, generators([3]))
        torch.testing.assert_close(x0, torch.stack(heard, dim=1), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(latents, expected, atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_the_loss_and_nearly_so_when_most_steps_are_passed_by(
    tiny_pipeline: Any,
) -> None:
    noise = torch.randn(1, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    gradients = {}
    for every in (1, 3):
        attacked = surrogate(tiny_pipeline, sequential(), every)
        see = attacked.see(attacked.embed(["a red one"]), ["gore"], [3])
        point = noise.clone().requires_grad_()
        (gradients[every],) = torch.autograd.grad(see(point).loss_B.sum(), point)
        if every == 1:
            along = gradients[1] / gradients[1].norm()
            with torch.no_grad():
                higher, lower = (see(noise + sign * 0.05 * along).loss_B.item() for sign in (1, -1))
            assert (higher - lower) / 0.1 == pytest.approx(gradients[1].norm().item(), rel=0.1)
    cosine = torch.cosine_similarity(gradients[1].flatten(), gradients[3].flatten(), dim=0)
    assert cosine > 0.3


def test_a_rule_that_votes_is_not_attacked(tiny_pipeline: Any) -> None:
    with pytest.raises(LvdError, match="on the sequential rule"):
        surrogate(tiny_pipeline, bundle_info(tiny_pipeline).rule, 1)


def test_attacks_are_judged_by_the_guard_and_written_down(
    tiny_pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beyond, "judge", lambda recogniser, frames: [GORE] * len(frames))
    flat = np.ones((3, len(NAMES)))
    rule = sequential(boundary=-5.0, evidence=Evidence(flat, flat, 0 * flat))  # all that is drawn is caught
    detectors = Brightness()
    info = bundle_info(tiny_pipeline, rule=rule, steps=3, guidance=1.0)
    guard = Guard(Bundle(info, "d" * 64, detectors), mode="observe")  # type: ignore[arg-type]

    def bench() -> attack.Bench:
        attacked = surrogate(tiny_pipeline, rule, 3, detectors, guidance=1.0)
        journal = Journal(tmp_path / "attack.jsonl", "one")
        return attack.Bench(guard, tiny_pipeline, Recogniser().eval(), attacked, journal)

    captions = [caption for caption in CAPTIONS if caption.unsafe][:2]
    targets = attack.starts(bench(), captions, 1, seed=7)
    assert [one.prompt for one in targets] == [captions[0].text]
    shares, moved = [], []
    for budget in (0.0, 0.05, math.inf):
        records = attack.attack(bench(), targets, budget, "l2", 2, [3, 1.0])
        shares.append(attack.summarise(str(budget), records)["caught"])
        moved.append([one.get("moved", 0.0) for one in records])
    free = attack.attack_x0(bench(), targets, 20)
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    assert [max(far) <= 0.05 + 1e-6 for far in moved[:2]] == [True, True]
    assert max(moved[2]) > 0.05
    assert [(one["caught"], one["unsafe"]) for one in free] == [(False, True)]
    monkeypatch.setattr(attack, "pgd", lambda *given: pytest.fail("attacked again"))
    assert attack.attack_x0(bench(), targets, 20) == free
    with pytest.raises(LvdError, match="only 2 of 2 test prompts give unsafe videos"):
        attack.starts(bench(), captions, 3, seed=7)


def test_videos_that_the_attack_made_safe_are_not_counted() -> None:
    records = [
        {"prompt": "a", "unsafe": True, "caught": True, "step": 4},
        {"prompt": "b", "unsafe": True, "caught": False, "step": 49},
        {"prompt": "c", "unsafe": False, "caught": False, "step": 49},
        {"prompt": "d", "unsafe": None, "caught": True, "step": 2},
    ]
    found = attack.summarise("1", records)
    assert (found["attacked"], found["still_unsafe"], found["caught"]) == (4, 2, 1)
    assert found["steps_mean_caught"] == 5
    assert found["caught_in_words"].startswith("1 of 2: 50.0%")
    rows = [
        {"caught": 3, "still_unsafe": 4},
        {"caught": 1, "still_unsafe": 2},
        {"caught": 0, "still_unsafe": 0},
    ]
    assert attack.falls(rows)
    assert not attack.falls(rows[::-1][1:])


# ---- the commands


@pytest.fixture
def demo(tiny_pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both commands on the tiny pipeline, three steps of which decide; every video shows gore."""
    rule = sequential(boundary=-5.0, evidence=Evidence(np.ones((3, 2)), np.ones((3, 2)), np.zeros((3, 2))))
    info = bundle_info(tiny_pipeline, rule=rule, steps=3, guidance=1.0)
    bundle = Bundle(info, "d" * 64, Brightness())  # type: ignore[arg-type]
    monkeypatch.setattr(beyond, "load_bundle", lambda path: bundle)
    monkeypatch.setattr(beyond, "load_pipeline", lambda path: tiny_pipeline)
    monkeypatch.setattr(beyond, "unseen_captions", lambda path: CAPTIONS)
    monkeypatch.setattr(beyond, "judge", lambda recogniser, frames: [GORE] * len(frames))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_table_of_shifts_comes_last_and_its_numbers_are_written(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["shift.py", "--videos", "1", "--rows", "guidance 3", "look-alikes only"]
    monkeypatch.setattr(sys, "argv", [*command, "--json", "table.json", "--csv", "table.csv"])
    assert shift.main() == 0
    _, table = capsys.readouterr().out.split("beyond the training distribution")
    assert "guidance_scale is 3.0, not 1.0" in " ".join(table.split())
    assert "1 of 1: at least 5.0%" in " ".join(table.split())
    written = json.loads((demo / "table.json").read_text())
    assert [(one["row"], one["caught"], one["refused"]) for one in written["rows"]] == [
        ("guidance 3", 1, True),
        ("look-alikes only", 1, False),
    ]
    assert len((demo / "table.csv").read_text().splitlines()) == 3
    assert len((demo / "runs/demo/shift.jsonl").read_text().splitlines()) == 2
    monkeypatch.setattr(sys, "argv", ["shift.py", "--videos", "0"])
    assert shift.main() == 1
    assert capsys.readouterr().err == "error: --videos 0: give at least 1\n"


def test_the_table_of_attacks_begins_unattacked_and_ends_without_a_bound(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--videos", "1", "--iterations", "1", "--budgets", "0.1", "--json", "table.json"]
    monkeypatch.setattr(sys, "argv", ["attack.py", *options])
    assert attack.main() == 0
    assert capsys.readouterr().out.endswith("caught never rises with the budget: yes\n")
    rows = json.loads((demo / "table.json").read_text())["rows"]
    assert [one["budget"] for one in rows] == ["0: not attacked", "0.1", attack.X0]
    assert [one["still_unsafe"] for one in rows] == [1, 1, 1]
    assert (rows[0]["caught"], rows[-1]["caught"]) == (1, 0)
    monkeypatch.setattr(sys, "argv", ["attack.py", "--every", "0"])
    assert attack.main() == 1
    assert capsys.readouterr().err == "error: --every 0: give at least 1\n"
