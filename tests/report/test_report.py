import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from lvd.decide.intervals import wilson
from lvd.decide.metrics import (
    Attribution,
    Summary,
    cell_metrics,
    measure_attribution,
    summarise,
)
from lvd.decide.rules import Rule, Vote
from lvd.decide.sequential import Evidence, Sequential
from lvd.detect.bank import Scored
from lvd.latents.format import Sample
from lvd.report import defence, examples, figures, heatmaps, tables
from lvd.report.html import source
from lvd.report.page import ExampleRow, Section, write_page
from support.html import HOSTILE, Tags

NAN = float("nan")


def png(pixels: np.ndarray, note: str = "") -> bytes:
    out, info = io.BytesIO(), PngInfo()
    info.add_text("prompt", note)
    Image.fromarray(pixels).save(out, format="PNG", pnginfo=info)
    return out.getvalue()


def noise(side: int = 32, note: str = "") -> bytes:
    return png(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8), note)


def example(text: str = "a caption", *, images: Any = "blurred", side: int = 32) -> ExampleRow:
    image = noise(side, note=text)
    return ExampleRow(text, text, text, "wrong", [(text, image, True), ("step 1", image, False)], images)


def grid(values: list[list[float]], categories: tuple[str, ...] = ("gore", "monster")) -> pd.DataFrame:
    return pd.DataFrame(values, index=list(categories), columns=range(len(values[0])))


def heatmap(name: str = "gore") -> Figure:
    values = grid([[0.6, 0.7], [0.8, float("nan")]], (name, "monster"))
    return heatmaps.cell_heatmap(values, title=name, colour_range=(0.5, 1))


def render(folder: Path, sections: list[Section], title: str = "Report", lead: str = "") -> Tags:
    write_page(folder / "report.html", title=title, lead=lead, sections=sections)
    return Tags((folder / "report.html").read_text(encoding="utf-8"))


def test_hostile_text_is_shown_and_never_becomes_markup(tmp_path: Path) -> None:
    def sections(text: str) -> list[Section]:
        table = pd.DataFrame({text: [text], "n": [1]})
        return [Section(text, text, [[(text, text, text)], table, example(text), heatmap(text)])] * 4

    calm = render(tmp_path, sections("calm"), "calm", "calm")
    hostile = render(tmp_path, sections(HOSTILE), HOSTILE, HOSTILE)
    names = [(tag, sorted(attributes)) for tag, attributes in hostile.tags]
    assert names == [(tag, sorted(attributes)) for tag, attributes in calm.tags]
    shown = calm.text.count("calm")
    assert shown > 40
    assert hostile.text.count(HOSTILE) == shown


def test_page_loads_nothing_and_only_its_own_scripts_may_run(tmp_path: Path) -> None:
    page = render(tmp_path, [Section("One", "", [heatmap(), example()])])
    loaded = [
        value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "data")
    ]
    assert len(loaded) == 2
    assert all(value and value.startswith("data:image/png;base64,") for value in loaded)
    assert not page.named("link")
    assert all((a.get("href") or "").startswith("#section-") for a in page.named("a"))
    policy = next(
        a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_plotly_is_inlined_once_and_only_where_it_is_needed(tmp_path: Path) -> None:
    drawn = render(tmp_path, [Section("One", "", [heatmap(), heatmap()]), Section("Two", "", [heatmap()])])
    assert drawn.scripts.count(get_plotlyjs()) == 1
    assert sum(len(script) > 1_000_000 for script in drawn.scripts) == 1
    assert len([a for a in drawn.named("script") if a.get("type") == "application/json"]) == 3
    assert render(tmp_path, [Section("One", "", [example()])]).scripts == []


def test_long_pages_have_a_nav_to_every_section(tmp_path: Path) -> None:
    sections = [Section(str(number), "", []) for number in range(4)]
    assert not render(tmp_path, sections[:3]).named("nav")
    page = render(tmp_path, sections)
    targets = [f"#{a['id']}" for a in page.named("section")]
    assert [a["href"] for a in page.named("a")] == targets


def test_blurred_pixels_and_their_metadata_are_not_in_the_file(tmp_path: Path) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (16, 16, 1), dtype=np.uint8)
    frame = ("step 0", png(np.kron(blocks, np.ones((32, 32, 3), dtype=np.uint8)), note="secret"), False)
    page = render(tmp_path, [Section("One", "", [ExampleRow("s1", "a", "b", "unsafe", [frame])])])
    data = base64.b64decode(str(page.named("img")[0]["src"]).partition(",")[2])
    assert b"secret" not in data
    soft = np.asarray(Image.open(io.BytesIO(data)), dtype=float)
    assert soft.shape == (512, 512, 3)
    assert np.abs(np.diff(soft, axis=0)).max() <= 4
    assert "show_unsafe=true" in page.text


def test_sharp_images_are_kept_and_small_ones_enlarged_as_pixels(tmp_path: Path) -> None:
    rows = [example(images="sharp"), example(images="sharp", side=300)]
    page = render(tmp_path, [Section("One", "", rows)])
    small, large = page.named("img")[0], page.named("img")[2]
    assert small["src"] == f"data:image/png;base64,{base64.b64encode(noise(note='a caption')).decode()}"
    assert small["class"] == "pixels"
    assert "class" not in large
    assert [a.get("class") for a in page.named("li")] == ["flagged", None] * 2
    assert "show_unsafe=true" not in page.text


def test_an_image_that_cannot_be_blurred_stops_the_page(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot identify image"):
        render(
            tmp_path,
            [Section("One", "", [ExampleRow("s1", "x", "x", "safe", [("step 0", b"no image", False)])])],
        )
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_page_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render(tmp_path, [], title="old")

    def full(path: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        render(tmp_path, [], title="new")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert Tags((tmp_path / "report.html").read_text()).text.strip().startswith("old")


def test_a_table_shows_a_missing_value_as_missing(tmp_path: Path) -> None:
    table = pd.DataFrame({"auroc": [0.0, float("nan")], "category": ["gore", None]})
    page = render(tmp_path, [Section("One", "", [table])])
    assert re.findall(r"0\.000|nan|None|–", page.text) == ["0.000", "–", "–"]


@pytest.mark.parametrize("hole", [float("nan"), float("inf")])
def test_a_hole_is_no_value_but_a_cell_of_its_own(hole: float) -> None:
    figure = heatmaps.cell_heatmap(grid([[0.6, hole], [0.0, 0.9]]), title="AUROC", colour_range=(0.5, 1))
    values, holes, crosses = figure.data
    z = np.array(values.z, dtype=float)
    assert np.isnan(z[0, 1])
    assert z[1, 0] == 0.0
    assert np.array_equal(np.isnan(np.array(holes.z, dtype=float)), [[True, False], [True, True]])
    assert "no detector" in holes.hovertemplate
    assert crosses.name == "no detector"
    assert (list(crosses.x), list(crosses.y)) == ([1], ["gore"])


def test_a_hole_says_why_it_is_one_by_a_mark_and_a_legend_of_its_own() -> None:
    kinds = [heatmaps.NO_DETECTOR, heatmaps.FAILED, heatmaps.TO_DO, heatmaps.NOT_MEASURED]
    holes = pd.DataFrame([kinds], index=["gore"])
    values = grid([[float("nan")] * 4], ("gore",))
    figure = heatmaps.cell_heatmap(values, title="", colour_range=(0.5, 1), holes=holes)
    marks = [trace for trace in figure.data if trace.type == "scatter"]
    assert {mark.name: list(mark.x) for mark in marks} == {kind: [x] for x, kind in enumerate(kinds)}
    assert all(mark.showlegend for mark in marks)
    looks = {str((mark.marker.symbol, mark.marker.color, mark.marker.line.color)) for mark in marks}
    assert len(looks) == len(kinds)


def test_a_full_grid_has_no_sign_of_holes() -> None:
    assert len(heatmaps.cell_heatmap(grid([[0.6, 0.7]] * 2), title="AUROC", colour_range=(0.5, 1)).data) == 1


def test_the_surface_has_eta_to_the_right_and_marks_the_choice() -> None:
    accuracy = pd.DataFrame([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], index=[1, 2, 3], columns=[0.5, 1.0])
    cells, chosen = heatmaps.decision_surface(accuracy, eta=3, lam=0.5, title="on val").data
    assert cells.z[list(cells.y).index(0.5)][list(cells.x).index(3)] == 0.5
    assert (chosen.x[0], chosen.y[0]) == (3, 0.5)
    assert (cells.zmin, cells.zmax) == (0.1, 0.6)


def test_stops_of_each_rule_are_cumulated_over_all_samples_of_their_label() -> None:
    rows = [
        ("vote", "unsafe", True, 2),
        ("vote", "unsafe", True, 0),
        ("vote", "unsafe", False, 1),
        ("vote", "unsafe", False, 2),
        ("vote", "safe", False, 1),
        ("sequential", "unsafe", True, 1),
        ("sequential", "safe", True, 3),
    ]
    stopped = pd.DataFrame(rows, columns=["rule", "label", "stopped", "step"])
    lines = {line.name: list(line.y) for line in figures.stopped_by_step(stopped, steps=4).data}
    assert lines == {
        "vote: unsafe caught": [0.25, 0.25, 0.5, 0.5],
        "vote: safe blocked": [0, 0, 0, 0],
        "sequential: unsafe caught": [0, 1, 1, 1],
        "sequential: safe blocked": [0, 0, 0, 1],
    }


@pytest.mark.parametrize("steps", [1, 5])
def test_stops_that_are_all_at_step_0_are_drawn(steps: int) -> None:
    stopped = pd.DataFrame({"rule": ["vote"], "label": ["unsafe"], "stopped": [True], "step": [0]})
    for line in figures.stopped_by_step(stopped, steps=steps).data:
        assert list(line.x) == list(range(steps))
        assert len(line.x) > 1 or line.mode == "markers"  # a line of one point is not seen


def test_the_trade_off_marks_each_rule_with_its_intervals_and_the_guarantee() -> None:
    curves = pd.DataFrame({"rule": "vote", "fpr": [0.0, 1.0], "tpr": [0.0, 1.0], "steps": [NAN, 3.0]})
    rule = {"rule": "vote", "fpr": 0.1, "fpr_low": 0.05, "fpr_high": 0.3, "tpr": 0.8, "steps": 12.34}
    rule |= {"tpr_low": 0.5, "tpr_high": 0.9, "alpha": 0.05}
    figure = figures.trade_off(curves, pd.DataFrame([rule]))
    curve, point, in_legend = figure.data
    assert list(curve.customdata) == ["none is caught", "3.0 steps until caught"]
    assert (list(point.x), list(point.y), list(point.marker.color)) == ([0.1], [0.8], [12.34])
    assert np.allclose([*point.error_x.arrayminus, *point.error_x.array], [0.05, 0.2])
    assert np.allclose([*point.error_y.arrayminus, *point.error_y.array], [0.3, 0.1])
    assert [trace.showlegend for trace in (curve, point, in_legend)] == [False, False, True]
    assert figure.layout.shapes[0].x0 == 0.05
    assert figure.layout.annotations[0].text == "vote: alpha 5%"
    assert figure.layout.xaxis.range[1] >= 0.3
    assert figure.layout.yaxis.range[0] <= 0.5  # the whole interval is seen


def test_the_trade_off_of_rates_that_nothing_counts_for_is_drawn() -> None:
    columns = ["fpr", "fpr_low", "fpr_high", "tpr", "tpr_low", "tpr_high", "steps", "alpha"]
    rules = pd.DataFrame([{"rule": "vote", **dict.fromkeys(columns, NAN)}])
    layout = figures.trade_off(rules.iloc[:0], rules).layout
    assert np.isfinite([*layout.xaxis.range, *layout.yaxis.range]).all()
    assert not layout.shapes  # nothing is guaranteed


def test_every_unsafe_group_is_drawn_against_safe() -> None:
    rows = [(step, group, 0.5, 0.4, 0.6) for group in ("safe", "gore", "monster") for step in (1, 0)]
    figure = figures.score_traces(pd.DataFrame(rows, columns=["step", "group", "median", "low", "high"]))
    lines = [(trace.name, trace.xaxis, list(trace.x)) for trace in figure.data if trace.mode == "lines"]
    assert lines == [(name, axis, [0, 1]) for axis in ("x", "x2") for name in ("unsafe", "safe")]
    assert [note.text for note in figure.layout.annotations] == ["gore", "monster"]
    assert sum(trace.showlegend for trace in figure.data) == 2


def test_the_interval_and_the_chosen_eta_are_drawn() -> None:
    table = pd.DataFrame({"eta": [1, 2], "accuracy": [0.5, 0.6], "tpr": [0.7, 0.8], "fpr": [0.2, 0.1]})
    table = table.assign(accuracy_low=[0.4, 0.5], accuracy_high=[0.6, 0.7])
    figure = figures.curves_by_eta(table, lam=0.6, chosen_eta=2)
    band, accuracy, *_ = figure.data
    assert list(band.y) == [0.6, 0.7, 0.5, 0.4]
    assert list(accuracy.customdata) == ["0.400 to 0.600", "0.500 to 0.700"]
    assert (figure.layout.shapes[0].x0, figure.layout.annotations[0].text) == (2, "chosen eta 2")


def test_an_interval_that_is_not_there_is_not_written() -> None:
    table = pd.DataFrame(
        [{"eta": 1}], columns=["eta", "accuracy", "accuracy_low", "accuracy_high", "tpr", "fpr"]
    )
    assert "nan" not in figures.curves_by_eta(table, lam=0.6, chosen_eta=1).to_json().lower()


def test_a_narrow_page_stacks_its_summaries_and_keeps_the_first_column_of_wide_tables() -> None:
    style = source("report/web/page.css")
    narrow = style.split("@media (max-width: 700px) {  /*")[1].split("\n}")[0]
    assert ".summary tr { display: grid;" in narrow
    assert "white-space: normal" in narrow
    assert "position: sticky; left: 0;" in style


# ---- the report

NAMES, SAMPLER_STEPS = ("alpha", "beta"), 5


def scored(*samples: tuple[str, str, list[float]], threshold: float = 0.5) -> Scored:
    """Samples by id, category (or none) and the score of the alpha detector at each step; beta's is 0.1."""
    alpha = np.array([scores for _, _, scores in samples])
    return Scored(
        [
            Sample(name, f"{name} {place}", f"prompt {place} of {name}", 0, (c,) if c else (), "test")
            for place, (name, c, _) in enumerate(samples)
        ],
        list(range(len(samples))),
        np.array([[category == name for name in NAMES] for _, category, _ in samples]),
        np.stack([alpha, np.where(np.isnan(alpha), np.nan, 0.1)], axis=2),
        threshold,
    )


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes the report of a test split; its images are noise, and the middle frame of sample n is n."""
    monkeypatch.setattr(examples, "load_vae", lambda info: None)
    monkeypatch.setattr(
        examples,
        "decode_frames",
        lambda vae, x0: torch.stack(
            [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(int(row[0, 0, 0]))) for row in x0]
        ),
    )

    def make(
        test: Scored,
        *,
        eta: int = 3,
        beside: Sequential | None = None,
        decision: str = "vote",
        **options: Any,
    ) -> Tags:
        rows = np.arange(len(test.samples), dtype=float)[:, None, None, None, None] + np.zeros(
            (1, 2, 3, 2, 2)
        )
        origin = SimpleNamespace(
            latent_shape=(2, 3, 2, 2), steps=SAMPLER_STEPS, pipeline="a/pipeline", scheduler="DDIMScheduler"
        )
        info = SimpleNamespace(category_names=NAMES, origin=origin)
        capture: Any = SimpleNamespace(info=info, step=lambda step: rows)
        rules = measured(test, Vote(eta, 1.0, test.threshold), *([beside] if beside else []))
        cells = []
        for column, name in enumerate(NAMES):
            positive, members = test.categories_NK[:, column], test.categories_NK[:, column] | ~test.label
            for step in range(test.flags.steps):
                scores = test.scores_NSK[members, step, column]
                metrics = cell_metrics(positive[members], scores, test.threshold)
                why = defence.hole(test, column, step)
                cells.append({"category": name, "step": step, **metrics, "hole": why})
        (rule,) = (rule for rule, _, _ in rules if rule.kind == decision)
        shown = {"examples": 6, "show_unsafe": False}
        shown |= {name: options.pop(name) for name in shown if name in options}
        options = {"problems": [], **options}
        path = tmp_path / "report.html"
        found = defence.Findings(capture, rules, rule, test, test, pd.DataFrame(cells), **options)
        defence.write_report(path, "Report", found, **shown)
        return Tags(path.read_text(encoding="utf-8"))

    return make


def measured(test: Scored, *rules: Rule) -> list[tuple[Rule, Summary, Attribution]]:
    return [
        (
            rule,
            summarise(
                rule,
                test.scores_NSK,
                test.categories_NK,
                NAMES,
                prompts_N=test.prompts,
                sampler_steps=SAMPLER_STEPS,
            ),
            measure_attribution(rule, test.scores_NSK, test.categories_NK, test.prompts),
        )
        for rule in rules
    ]


def sequential(boundary: float, *, alpha_is: str = "block") -> Sequential:
    """Cumulated log-odds of three steps, unweighed, against one boundary."""
    evidence = Evidence(np.ones((3, 2)), np.ones((3, 2)), np.zeros((3, 2)))
    return Sequential(evidence, (boundary, boundary), (alpha_is, "block"), 0.05, "marginal", 19)


CALM = ("calm", "", [0.1, 0.2, 0.1])
CAUGHT = ("caught", "alpha", [0.9, 0.9, 0.9])
BLOCKED = ("blocked", "", [0.8, 0.7, 0.9])
MISSED = ("missed", "alpha", [0.9, 0.2, 0.1])
WORSE = ("worse", "alpha", [0.3, 0.2, 0.1])


def seen(page: Tags) -> dict[str, str]:
    """How the images of each example are seen, by its sample_id."""
    shown = page.text.split("Failures to look at")[-1]
    names = re.findall(r"sample (\w+?)(?=Caught|Cleared|Missed|Wrongly|Flagged)", shown)
    alts = [str(a["alt"]).split(", ")[1:] for a in page.named("img")]
    each = len(alts) // len(names)
    return {name: " ".join(alts[each * n]) or "sharp" for n, name in enumerate(names)}


def test_an_image_is_sharp_only_where_label_decision_and_every_detector_say_safe(report: Any) -> None:
    one_flag = ("one_flag", "", [0.1, 0.6, 0.1])  # decided safe: three flags are needed
    test = scored(CALM, one_flag, BLOCKED, MISSED, CAUGHT)
    assert seen(report(test, examples=9)) == {
        "missed": "blurred",
        "blocked": "blurred",
        "calm": "sharp",
        "caught": "blurred",
    }
    test = scored(one_flag, BLOCKED, MISSED, CAUGHT)
    assert seen(report(test, examples=9))["one_flag"] == "blurred"


def test_a_high_threshold_does_not_uncover_a_sample_that_a_detector_finds_unsafe(report: Any) -> None:
    doubtful = ("doubtful", "", [0.7, 0.2, 0.1])
    assert seen(report(scored(doubtful, CAUGHT, threshold=0.8)))["doubtful"] == "blurred"


def test_a_blurred_example_is_not_in_the_file_and_a_covered_one_waits_for_its_reader(report: Any) -> None:
    blurred = report(scored(BLOCKED, CAUGHT))
    assert "This file does not hold the sharp images" in blurred.text
    assert not blurred.named("input")
    covered = report(scored(BLOCKED, CAUGHT), show_unsafe=True)
    assert set(seen(covered).values()) == {"covered"}
    boxes = covered.named("input")
    assert [box["type"] for box in boxes] == ["checkbox"] * 2
    assert "checked" not in boxes[0]
    assert {label["for"] for label in covered.named("label")} == {box["id"] for box in boxes}
    assert "This file holds the sharp images" in covered.text
    assert not {a["src"] for a in covered.named("img")} & {a["src"] for a in blurred.named("img")}


def test_mistakes_come_first_the_worst_first_and_by_their_sample_id(report: Any) -> None:
    page = report(scored(CALM, CAUGHT, MISSED, BLOCKED, WORSE), examples=12)
    assert list(seen(page)) == ["worse", "missed", "blocked", "calm", "caught"]
    assert "3 of 3 mistakes of the vote rule come first" in page.text
    assert "Missed: labelled alpha, decided safe, certain at step 0" in page.text
    assert "Wrongly blocked: labelled safe, decided unsafe" in page.text


def test_mistakes_of_both_kinds_and_right_decisions_share_the_places(report: Any) -> None:
    missed = [(f"missed_{n}", "alpha", [0.1, 0.1, 0.1]) for n in range(9)]
    blocked = [(f"blocked_{n}", "", [0.9, 0.9, 0.9]) for n in range(9)]
    names = list(seen(report(scored(CALM, CAUGHT, *missed, *blocked), examples=6)))
    assert [name.split("_")[0] for name in names] == ["missed"] * 2 + ["blocked"] * 2 + ["calm", "caught"]
    names = list(seen(report(scored(CALM, CAUGHT, *missed), examples=6)))
    assert [name.split("_")[0] for name in names] == ["missed"] * 4 + ["calm", "caught"]


def test_an_undecided_sample_is_neither_a_mistake_nor_right(report: Any) -> None:
    unknown = ("unknown", "", [0.9, NAN, 0.9])
    assert list(seen(report(scored(unknown, CALM, CAUGHT)))) == ["calm", "caught"]


def test_a_score_that_is_missing_is_said_to_be_missing(report: Any) -> None:
    holed = scored(("holed", "", [0.1, NAN, 0.1]), CAUGHT)
    holed.scores_NSK[1, 2, 1] = NAN
    page = report(holed)
    assert "nan" not in page.text.lower()
    assert "step 1\nno score" in page.text
    assert "step 2\nat least 0.90" in page.text


def drawn(page: Tags) -> list[dict[str, Any]]:
    return [json.loads(script) for script in page.scripts if script.startswith('{"data"')]


def test_a_category_without_test_samples_has_detectors_that_cannot_be_measured(report: Any) -> None:
    page = report(scored(CALM, CAUGHT))  # none of beta
    for heatmap in drawn(page)[2:4]:
        assert [trace["name"] for trace in heatmap["data"] if trace.get("mode")] == [heatmaps.NOT_MEASURED]
    assert "There are no test samples to measure beta on" in page.text
    holed = scored(CALM, CAUGHT)
    holed.scores_NSK[:, 1, 1] = NAN  # and one of them is missing
    names = {trace["name"] for trace in drawn(report(holed))[2]["data"] if trace.get("mode")}
    assert names == {heatmaps.NOT_MEASURED, heatmaps.NO_DETECTOR}


def test_a_step_is_an_index_and_steps_run_are_a_count(report: Any) -> None:
    page = report(scored(CALM, CAUGHT), eta=2)
    assert "Steps are numbered from 0" in page.text
    assert "stopped at step 1 (2 of 5 steps run)" in page.text
    assert "Steps run until a caught unsafe sample is stopped, mean2.0" in page.text
    assert "It looks at steps 0 to 1" in page.text


def test_what_is_saved_names_the_mix_that_it_holds_for(report: Any) -> None:
    text = report(scored(CALM, CALM, CALM, CAUGHT), eta=2).text
    assert "Steps saved, caught unsafe samples60%" in text  # 2 of 5 steps run
    assert "Steps saved, this mix of test samples15%" in text
    assert "On the 4 test samples, 1 unsafe and 3 safe" in text
    assert "holds for this mix; with fewer unsafe ones less is saved" in text


# ---- the rules on the report

# Evidence at a boundary of 3, from log-odds: 0.9 is +2.2, 0.5 is 0, 0.1 is -2.2.
LATE = ("late", "alpha", [0.5, 0.9, 0.9])  # 2.2 at step 1, 4.4 at step 2; the vote flags it three times
WEAK = ("weak", "alpha", [0.6, 0.6, 0.6])  # flagged three times, with little evidence


def lead(page: Tags) -> str:
    return page.text.split("Report")[2].split("What was tested")[0].strip()


def test_the_headline_has_counts_intervals_steps_and_the_guarantee(report: Any) -> None:
    rule = sequential(3.0)
    page = report(scored(CALM, *[CALM] * 3, CAUGHT, LATE, MISSED), beside=rule, decision="sequential")
    low, high = wilson(2, 3)
    assert lead(page).splitlines() == [
        "Unsafe videos that the sequential rule caught, 2 of 3: 66.7% "
        f"(95% interval {low:.1%} to {high:.1%}).",
        "Safe videos that it blocked, 0 of 4: at most 52.7% (one-sided, 95% confidence).",
        "A caught video is stopped after 2.5 of 5 steps, on average.",  # at steps 1 and 2
        rule.guarantee_in_words(),
    ]


def test_the_headline_of_the_vote_promises_nothing(report: Any) -> None:
    text = lead(report(scored(CALM, CAUGHT, CAUGHT), beside=sequential(3.0)))
    assert f"vote rule caught, 2 of 2: at least {0.05 ** (1 / 2):.1%} (one-sided, 95% confidence)" in text
    assert text.endswith("It guarantees no share of blocked safe videos: that share is measured only.")


def test_a_headline_without_a_kind_of_sample_or_with_undecided_ones_says_so(report: Any) -> None:
    assert "There is no safe test video." in lead(report(scored(CAUGHT)))
    assert "Undecided, and withheld: 1 of 2" in lead(report(scored(CAUGHT, ("holed", "", [0.9, NAN, 0.9]))))
    nothing = report(scored(("holed", "", [0.9, NAN, 0.9])))
    assert "No sample of 1 could be decided" in lead(nothing)


def test_the_rules_stand_side_by_side_with_the_numbers_of_their_summaries(report: Any) -> None:
    test, rule = scored(CALM, BLOCKED, CAUGHT, LATE, WEAK, MISSED), sequential(3.0)
    text = report(test, beside=rule, decision="sequential").text
    assert "Measurevotesequentialdecides" in text
    (_, vote, vote_names), (_, other, names) = measured(test, Vote(3, 1.0, 0.5), rule)
    assert vote.tpr != other.tpr

    def cell(value: float | None, interval: tuple[float, float] | None) -> str:
        assert value is not None
        assert interval is not None
        return f"{value:.3f}{interval[0]:.3f} to {interval[1]:.3f}"

    for measure, field in (
        ("Accuracy", "accuracy"),
        ("Unsafe samples caught (tpr), n=4", "tpr"),
        ("Safe samples blocked (fpr), n=2", "fpr"),
    ):
        cells = [cell(getattr(it, field), getattr(it, f"{field}_ci")) for it in (vote, other)]
        assert f"{measure}{''.join(cells)}" in text
    areas = [cell(it.auroc, it.auroc_ci) for it in (vote, other)]
    assert f"AUROC of the rule's statistic{''.join(areas)}" in text
    mean = f"{vote.steps_mean_unsafe:.1f}{other.steps_mean_unsafe:.1f}"
    assert f"Steps run until a caught unsafe sample is stopped, mean{mean}" in text
    assert f"mix of test samples{vote.compute_saved:.0%}{other.compute_saved:.0%}" in text
    cells = [
        cell(it.per_category["alpha"]["tpr"], it.per_category["alpha"]["tpr_ci"]) for it in (vote, other)
    ]
    assert f"alpha caught, n=4{''.join(cells)}" in text
    assert "beta caught, n=0––" in text
    right = [f"{cell(it.first_right, it.first_right_ci)}\nn={it.n}" for it in (vote_names, names)]
    assert f"First category named is right, of the caught{''.join(right)}" in text
    assert "Undecided" not in text
    assert "Flagged" not in text


def test_a_vote_alone_has_one_column_and_undecided_samples_are_counted(report: Any) -> None:
    text = report(scored(CALM, CAUGHT, ("holed", "alpha", [0.9, NAN, 0.9]))).text
    assert "Measurevotedecides" in text
    assert "Undecided unsafe samples, withheld, not caught1" in text
    assert "Undecided safe samples" not in text


def test_a_sample_that_the_policy_releases_is_flagged_for_review(report: Any) -> None:
    rule = sequential(3.0, alpha_is="flag")
    page = report(scored(CALM, BLOCKED, CAUGHT), beside=rule, decision="sequential")
    assert seen(page) == {"blocked": "blurred", "calm": "sharp", "caught": "blurred"}
    marked = "decided unsafe (named alpha), released and marked, not stopped; evidence"
    assert f"Flagged for review: labelled alpha, {marked}" in page.text
    assert f"Wrongly flagged for review: labelled safe, {marked}" in page.text
    assert "Flagged unsafe samples, released, counted as caught01" in page.text
    assert "Flagged safe samples, released, not counted as blocked01" in page.text
    assert "Safe videos that it blocked, 0 of 2" in page.text
    assert "Of all, 2 are released and flagged for review, as the policy says." in page.text
    tones = [str(a["class"]).split()[-1] for a in page.named("article")]
    assert tones == ["wrong", "safe", "unsafe"]


def test_examples_go_by_the_rule_that_decides_and_say_its_evidence(report: Any) -> None:
    test = scored(CALM, CAUGHT, LATE, WEAK, MISSED)
    by_vote = report(test, beside=sequential(3.0), examples=9)
    assert list(seen(by_vote)) == ["missed", "calm", "caught"]
    assert "3 of the first 3 steps flagged, 3 of 3 are needed" in by_vote.text
    assert "flagged" in [a.get("class") for a in by_vote.named("li")]
    page = report(test, beside=sequential(3.0), decision="sequential", examples=9)
    assert list(seen(page)) == ["weak", "missed", "calm", "caught"]  # 1.2 and 2.2 at the most
    assert "stopped at step 1 (2 of 5 steps run); evidence 1.4 above the boundary" in page.text  # 4.4 - 3
    assert "evidence stayed 1.8 below the boundary in all 3 steps" in page.text  # weak: 3 - 3 * 0.405
    assert "flagged" not in [a.get("class") for a in page.named("li")]


def test_what_any_rule_doubts_is_blurred(report: Any) -> None:
    low = ("low", "", [0.4, 0.4, 0.4])
    test = scored(low, CAUGHT)
    assert seen(report(test, beside=sequential(3.0)))["low"] == "sharp"
    assert seen(report(test, beside=sequential(-5.0)))["low"] == "blurred"  # it would be blocked
    open_end = scored(("low", "", [0.1, 0.1, NAN]), ("caught", "alpha", [0.9, 0.9, NAN]))
    assert seen(report(open_end, eta=2))["low"] == "sharp"
    assert seen(report(open_end, eta=2, beside=sequential(3.0)))["low"] == "blurred"  # undecided


def test_curves_lead_from_all_to_nothing_through_the_rules(report: Any) -> None:
    test = scored(CALM, BLOCKED, ("mid", "", [0.5, 0.4, 0.6]), CAUGHT, LATE, WEAK, MISSED)
    page = report(test, beside=sequential(3.0), decision="sequential")
    traces = drawn(page)[0]["data"]
    for kind in ("vote", "sequential"):
        curve, point, _ = (trace for trace in traces if trace["name"] == kind)
        along = list(zip(curve["x"], curve["y"], strict=True))
        assert (along[0], along[-1]) == ((1.0, 1.0), (0.0, 0.0))
        assert along == sorted(along, reverse=True)
        assert (point["x"][0], point["y"][0]) in along
    assert "Curves are shown, not chosen from" in page.text
    assert drawn(page)[0]["layout"]["shapes"][0]["x0"] == 0.05
    assert "shapes" not in drawn(report(test))[0]["layout"]  # the vote guarantees nothing


def test_stops_are_drawn_for_each_rule_and_end_at_its_rates(report: Any) -> None:
    test, rule = scored(CALM, BLOCKED, CAUGHT, LATE, MISSED), sequential(3.0)
    lines = {line["name"]: line["y"] for line in drawn(report(test, eta=2, beside=rule))[1]["data"]}
    for each, summary, _ in measured(test, Vote(2, 1.0, 0.5), rule):
        assert lines[f"{each.kind}: unsafe caught"][-1] == summary.tpr
        assert lines[f"{each.kind}: safe blocked"][-1] == summary.fpr
        assert len(lines[f"{each.kind}: safe blocked"]) == 3


def test_the_numbers_of_every_figure_are_in_tables_beside_the_page(report: Any, tmp_path: Path) -> None:
    test, rule = scored(CALM, BLOCKED, CAUGHT, LATE, MISSED), sequential(3.0)
    page = report(test, eta=2, beside=rule)
    tables = {path.stem: pd.read_csv(path) for path in (tmp_path / "figures").iterdir()}
    of_rule = dict(tuple(tables["trade_off_rules"].groupby("rule")))
    for each, summary, _ in measured(test, Vote(2, 1.0, 0.5), rule):
        point = of_rule[each.kind].iloc[0]
        assert (point["fpr"], point["tpr"], point["steps"]) == pytest.approx(
            (summary.fpr, summary.tpr, summary.steps_mean_unsafe)
        )
        assert (point["tpr_low"], point["tpr_high"]) == pytest.approx(summary.tpr_ci)
    traces = drawn(page)
    for trace in traces[0]["data"]:
        curve = tables["trade_off_curves"][tables["trade_off_curves"]["rule"] == trace["name"]]
        if len(trace["x"]) > 1:
            assert curve["fpr"].tolist() == pytest.approx(trace["x"])
            assert curve["tpr"].tolist() == pytest.approx(trace["y"])
    stops = tables["stopped_by_step"]
    for line in traces[1]["data"]:
        kind, what = line["name"].split(": ")
        part = stops[(stops["rule"] == kind) & (stops["label"] == what.split()[0])]
        assert (part["stopped"] / part["n"]).tolist() == pytest.approx(line["y"])
    surface = tables["accuracy_by_eta_and_lam"]
    assert (len(surface), surface["eta"].max()) == (3 * 20, 3)
    at = surface[(surface["eta"] == 2) & (surface["lam"] == 1.0)]["accuracy"].item()
    assert at == pytest.approx(tables["rates_by_eta"].set_index("eta").loc[2, "accuracy"])
    assert set(tables["detectors"].columns) >= {"category", "step", "auroc", "accuracy", "hole"}
    assert set(tables["score_quartiles"]["group"]) == {"alpha", "safe"}


def test_the_limits_have_the_notes_small_categories_and_missing_detectors(report: Any) -> None:
    test = scored(CALM, CAUGHT)
    options = {"notes": ["the capture is another"], "problems": ["alpha step_00: no detector"]}
    text = report(test, beside=sequential(3.0), decision="sequential", **options).text
    limits = text.split("Limits")[-1]
    assert "What share of unsafe videos is caught is measured, not guaranteed." in limits
    assert "Fewer than 20 test samples: alpha (1), beta (0)." in limits
    assert "alpha step_00: no detector" in limits
    assert "the capture is another" in limits
    assert "of 2 test samples of 2 prompts" in limits


def test_where_prompts_have_several_samples_every_interval_is_by_prompts_and_says_so(report: Any) -> None:
    """Two seeds of each prompt, which fare alike: the page, its figures and the headline count prompts."""
    kinds = [CALM, CALM, CALM, BLOCKED, CAUGHT, CAUGHT, MISSED, LATE]
    one, two = scored(*kinds), scored(*kinds, *kinds)
    again = [replace(sample, sample_id=f"{sample.sample_id} again") for sample in one.samples]
    two = replace(two, samples=[*one.samples, *again])
    (_, alone, _), (_, twice, _) = (measured(each, Vote(3, 1.0, 0.5))[0] for each in (one, two))
    assert (alone.intervals, twice.intervals) == ("wilson", "bootstrap over prompts")
    assert (twice.n_unsafe, twice.n_prompts, twice.n_prompts_unsafe, twice.n_prompts_safe) == (8, 8, 4, 4)
    assert alone.tpr == twice.tpr
    for rate in ("accuracy", "tpr", "fpr"):  # twice the samples say no more
        assert getattr(twice, f"{rate}_ci") == pytest.approx(getattr(alone, f"{rate}_ci"), abs=0.05)
    assert (twice.tpr_ci or (1, 0))[0] < wilson(6, 8)[0]
    page = report(two)
    assert "by a bootstrap over the 8 prompts, since samples of one prompt are alike" in page.text
    assert "(Wilson; every prompt has one sample; of an AUROC by a bootstrap" in report(one).text
    low, high = twice.tpr_ci or (0, 0)
    assert f"caught, 6 of 8 (of 4 prompts): 75.0% (95% interval {low:.1%} to {high:.1%})." in lead(page)
    point = next(trace for trace in drawn(page)[0]["data"] if trace.get("error_y"))
    assert point["error_y"]["arrayminus"] == [pytest.approx(0.75 - low)]
    assert "of 16 test samples of 8 prompts" in page.text
    assert "too narrow" not in page.text


def test_no_error_is_said_with_its_one_sided_bound_by_prompts(report: Any) -> None:
    test = scored(CAUGHT, CAUGHT, CALM, CALM)
    assert "Safe videos that it blocked, 0 of 2: at most 77.6% (one-sided, 95% confidence)." in lead(
        report(test)
    )
    alike = replace(test, samples=[test.samples[0]] * 2 + [test.samples[2]] * 2)
    assert "it blocked, 0 of 2 (of 1 prompt): at most 95.0% (one-sided" in lead(report(alike))


# ---- what evaluate.py prints


def test_the_printed_summary_has_a_column_a_rule_and_marks_the_one_that_decides(
    capsys: pytest.CaptureFixture[str],
) -> None:
    test, rule = scored(CALM, BLOCKED, CAUGHT, LATE, MISSED), sequential(3.0)
    tables.print_summary(measured(test, Vote(3, 1.0, 0.5), rule), "sequential")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert all(len(line) <= 80 for line in lines[:-1])
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert ["measure", "vote", "sequential, decides"] in rows
    tpr, fpr = wilson(2, 3), wilson(1, 2)
    caught = ["0.667", f"{tpr[0]:.3f} to {tpr[1]:.3f}"]
    assert ["unsafe samples caught (tpr)", *caught, *caught] in rows
    of_vote, of_other = ["0.500", f"{fpr[0]:.3f} to {fpr[1]:.3f}"], ["0.500", f"{fpr[0]:.3f} to {fpr[1]:.3f}"]
    assert ["safe samples blocked (fpr)", *of_vote, *of_other] in rows
    assert ["steps run until caught, mean", "3.0", "2.5"] in rows
    text = " ".join(lines)
    assert "Intervals of 95%: wilson; of an AUROC, bootstrap over prompts." in text
    assert f"sequential: unsafe samples caught, 2 of 3: 66.7% (95% interval {tpr[0]:.1%} to" in text
    assert f"sequential: {rule.guarantee_in_words()}" in re.sub(r"\s+", " ", text)
    assert lines[-1].startswith("first category named right: 1.000 of 2 caught (")
