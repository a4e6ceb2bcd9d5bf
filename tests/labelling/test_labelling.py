"""What people look at first and why, what is suggested to them, and Label Studio's files."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from conftest import NAMES, write_capture
from lvd.capture.label_studio import read_export
from lvd.capture.labels import label
from lvd.capture.preview import write_preview
from lvd.errors import LvdError
from lvd.labelling.queue import ordered
from lvd.labelling.suggest import Decision, Suggestions, of_file, of_run
from lvd.latents.format import UNLABELLED, Categories, Sample, label_text, read_samples
from lvd.latents.reader import CaptureReader
from support.commands import Shell

EXPORT = Path(__file__).with_name("label_studio_export.json")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell("capture.py", tmp_path, monkeypatch, capfd)


def capture_with_previews(command: Shell, count: int = 8, **changes: object) -> Path:
    capture = write_capture(command.directory / "captures" / "mine", count, labelled=False, **changes)
    for sample in read_samples(capture):
        write_preview(capture, sample.sample_id, np.zeros((2, 16, 16, 3)), 8.0)
    return capture


def page_data(capture: Path) -> Any:
    page = (capture / "label.html").read_text(encoding="utf-8")
    start = page.index('id="data">') + len('id="data">')
    return json.loads(page[start : page.index("</script>", start)])


# What comes first


def a_sample(sample_id: str, categories: Categories) -> Sample:
    return Sample(sample_id, sample_id, f"prompt of {sample_id}", 0, categories, "train")


def test_what_helps_most_comes_first_and_says_why() -> None:
    samples = [
        a_sample("plain", ("alpha",)),
        a_sample("sure", UNLABELLED),
        a_sample("unsure", UNLABELLED),
        a_sample("outvoted", ("beta",)),
        a_sample("missed", ("alpha", "beta")),
        a_sample("blocked", ()),
        a_sample("split", UNLABELLED),
    ]
    run = Suggestions(
        "run r",
        {"sure": {"alpha": 0.01, "beta": 0.97}, "unsure": {"alpha": 0.9, "beta": 0.45}},
        {
            "plain": Decision(True, 2, ("alpha",)),
            "missed": Decision(False, 2, ()),
            "blocked": Decision(True, 1, ("beta",)),
            "unsure": Decision(True, 1, ("alpha",)),
        },
    )
    judged = {"ann": frozenset(["beta"]), "bob": frozenset[str](), "eve": frozenset(["beta"])}
    disagreements = {"outvoted": judged, "split": {who: judged[who] for who in ("ann", "bob")}}
    entries = ordered(samples, disagreements, [run])
    assert [(entry.sample.sample_id, entry.why) for entry in entries] == [
        ("split", "2 annotators do not agree on beta. It is unlabelled."),
        ("missed", "Labelled alpha|beta, but run r takes it for safe."),
        ("blocked", "Labelled safe, but run r stops it at step 1, for beta."),
        ("outvoted", "3 annotators do not agree on beta. Most say beta."),
        ("unsure", "Unlabelled. What run r is least sure of: beta 0.45."),
        ("sure", "Unlabelled. What run r is least sure of: beta 0.97."),
        ("plain", "Labelled alpha, and nothing speaks against it."),
    ]
    assert [entry.needs_label for entry in entries] == [True] * 6 + [False]


def test_without_a_run_unlabelled_samples_keep_the_order_of_the_capture(command: Shell) -> None:
    capture = capture_with_previews(command)
    (command.directory / "l.csv").write_text("sample_id,category\ns001,alpha\ns004,safe\n")
    ran = command("name=mine", "labels=l.csv", "page=true")
    assert ran.code == 0, ran.err
    assert "page: captures/mine/label.html, 6 of 8 samples need a label" in ran.out
    data = page_data(capture)
    assert [entry["id"] for entry in data["entries"]] == [f"s00{n}" for n in (0, 2, 3, 5, 6, 7, 1, 4)]
    assert data["entries"][0]["why"] == "Unlabelled, in the order of the capture."
    assert data["entries"][0]["preview"] == "preview/s000.mp4"
    assert [category["key"] for category in data["categories"]] == ["1", "2"]


def test_a_runs_scores_order_the_page_and_are_shown_but_label_nothing(
    captured: Path, trained_run: Path, command: Shell
) -> None:
    import shutil

    shutil.copytree(trained_run, command.directory / "runs" / "tiny", symlinks=True)
    (command.directory / "l.csv").write_text("sample_id,category\ns000,alpha\n")
    for sample in read_samples(captured):
        write_preview(captured, sample.sample_id, np.zeros((1, 16, 16, 3)), 8.0)
    ran = command("name=tiny", "labels=l.csv", "page=true", "run=tiny")  # the run's labels are others by now
    assert ran.code == 0, ran.err
    assert sum(sample.is_labelled for sample in read_samples(captured)) == 1
    found = of_run(CaptureReader(captured), trained_run)
    doubt = {id_: min(abs(score - 0.5) for score in by.values()) for id_, by in found.scores.items()}
    shown = [entry["id"] for entry in page_data(captured)["entries"]]
    assert shown[-1] == "s000"
    assert shown[:-1] == sorted(shown[:-1], key=lambda id_: doubt[id_])
    assert all(entry["suggested"][0].startswith("run tiny: ") for entry in page_data(captured)["entries"])
    # the scores are those of the evaluation: the mean of a category's over the steps
    truth = {f"s{i:03d}": NAMES[i % 4] if i % 4 < 2 else "safe" for i in range(80)}
    mean = {name: np.mean([by["alpha"] for id_, by in found.scores.items() if truth[id_] == name])
            for name in ("alpha", "safe")}  # fmt: skip
    assert mean["alpha"] > mean["safe"] + 0.2


def test_with_all_labels_there_the_command_says_what_is_next(command: Shell) -> None:
    capture = capture_with_previews(command, 4)
    ran = command("name=mine", "page=true")
    assert "4 samples without labels\n" in ran.out  # and no advice to make the page
    (command.directory / "l.csv").write_text(
        "sample_id,category\n" + "".join(f"{sample.sample_id},safe\n" for sample in read_samples(capture))
    )
    ran = command("name=mine", "labels=l.csv", "page=true")
    assert "all 4 samples are labelled; next: python train.py task=trunk name=mine" in ran.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["page=true", "run=nobody"], "no run at runs/nobody"),
        (["run=r"], "run= is suggested to who labels: it goes with page=true or label_studio=true"),
        (["page=true", "suggestions=none.csv"], "no such file: none.csv"),
        (["page=true", "prompts=p.txt", "worker=0", "workers=2"], "worker= goes with prompts=FILE.csv alone"),
        (["captures=nowhere", "page=true"], "no capture at nowhere/mine: make it with capture.py name=mine"),
    ],
)
def test_a_mistake_gives_one_error_message(arguments: list[str], sentence: str, command: Shell) -> None:
    capture_with_previews(command, 4)
    ran = command("name=mine", *arguments)
    assert (ran.code, ran.err.count("\n")) == (1, 1), ran.err
    assert sentence in ran.err


def test_a_preview_that_cannot_be_made_says_what_to_do(command: Shell) -> None:
    (generator := command.directory / "generator").mkdir()  # without a VAE
    capture = capture_with_previews(command, 4, pipeline=str(generator))
    (capture / "preview" / "s002.mp4").unlink()
    ran = command("name=mine", "page=true")
    assert ran.code == 1
    assert f"1 of 4 samples of captures/mine have no preview, and the VAE of {generator} " in ran.err
    assert ran.err.endswith("capture with preview=true\n")
    assert not (capture / "label.html").exists()


def test_hostile_texts_stay_texts(command: Shell) -> None:
    capture = capture_with_previews(command, 4)
    (command.directory / "s.csv").write_text("sample_id,category,score\ns000,alpha,0.5\n")
    samples = (capture / "samples.csv").read_text()
    (capture / "samples.csv").write_text(samples.replace("prompt number 0,0", "</script><img src=x>,0", 1))
    assert command("name=mine", "page=true", "suggestions=s.csv").code == 0
    page = (capture / "label.html").read_text(encoding="utf-8")
    assert "<img src=x>" not in page
    assert page.count("</script>") == 2
    assert "</script><img src=x>" in [entry["prompt"] for entry in page_data(capture)["entries"]]
    assert "default-src &#39;none&#39;" in page


# Suggestions of any program


def test_suggestions_of_a_file_are_shown_and_order_the_page(command: Shell) -> None:
    capture = capture_with_previews(command)
    text = "sample_id,category,score\ns003,alpha,0.9\ns003,beta,0.02\ns005,beta,0.52\n"
    (command.directory / "mine.csv").write_text(text)
    assert command("name=mine", "page=true", "suggestions=mine.csv").code == 0
    entries = page_data(capture)["entries"]
    assert [entry["id"] for entry in entries][:3] == ["s005", "s003", "s000"]
    assert entries[1]["suggested"] == ["mine.csv: alpha 0.90"]
    assert entries[2]["suggested"] == []
    assert not any(sample.is_labelled for sample in read_samples(capture))
    (command.directory / "mine.csv").write_text("sample_id,category\ns003,alpha\n")
    assert of_file(CaptureReader(capture), command.directory / "mine.csv").scores == {"s003": {"alpha": 1.0}}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("nobody,alpha,0.5", "row 1: the capture has no sample 'nobody'"),
        ("s000,gamma,0.5", "row 1: unknown category 'gamma', use alpha, beta"),
        ("s000,alpha,1.5", "row 1: score '1.5' must be a number from 0 to 1"),
        ("s000,alpha,nan", "row 1: score 'nan' must be"),
        ("s000,alpha,", "row 1: score '' must be"),
        ("s000,alpha,0.5\ns000,alpha,0.6", "row 2: alpha of sample s000 appears twice"),
    ],
)
def test_a_bad_suggestion_is_refused(row: str, sentence: str, tmp_path: Path) -> None:
    capture = CaptureReader(write_capture(tmp_path / "mine", 4))
    (tmp_path / "s.csv").write_text(f"sample_id,category,score\n{row}\n")
    with pytest.raises(LvdError) as refusal:
        of_file(capture, tmp_path / "s.csv")
    assert sentence in str(refusal.value)


# Label Studio


def test_a_capture_is_a_project_of_label_studio(command: Shell) -> None:
    capture = capture_with_previews(command, 4)
    text = "sample_id,category,score\ns001,alpha,0.9\ns001,beta,0.6\ns002,alpha,0.2\ns002,beta,0.1\n"
    (command.directory / "mine.csv").write_text(text)
    ran = command("name=mine", "label_studio=true", "suggestions=mine.csv")
    assert ran.code == 0, ran.err
    assert "for Label Studio: captures/mine/label_studio" in ran.out
    interface = ElementTree.parse(capture / "label_studio" / "config.xml").getroot()
    keys = {choice.get("value"): choice.get("hotkey") for choice in interface.iter("Choice")}
    assert keys == {"alpha": "1", "beta": "2", "safe": "0"}  # the page's
    (choices,), (video,) = interface.iter("Choices"), interface.iter("Video")
    assert (choices.get("toName"), choices.get("choice")) == (video.get("name"), "multiple")
    tasks = {task["data"]["sample_id"]: task for task in json.loads(
        (capture / "label_studio" / "tasks.json").read_text()
    )}  # fmt: skip
    assert list(tasks) == ["s001", "s002", "s000", "s003"]
    assert tasks["s001"]["data"]["video"] == "/data/local-files/?d=mine/preview/s001.mp4"
    (prediction,) = tasks["s001"]["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("mine.csv", 0.9)
    (result,) = prediction["result"]
    assert (result["type"], result["from_name"], result["to_name"]) == (
        "choices", choices.get("name"), video.get("name"),
    )  # fmt: skip
    assert result["value"] == {"choices": ["alpha", "beta"]}
    (prediction,) = tasks["s002"]["predictions"]
    assert (prediction["result"][0]["value"], prediction["score"]) == ({"choices": ["safe"]}, 0.8)
    assert tasks["s000"]["predictions"] == []


def annotation(by: Any, *choices: str, **changes: Any) -> dict[str, Any]:
    """As Label Studio exports one (labelstud.io/guide/task_format)."""
    result = {
        **{"id": "x1", "type": "choices", "from_name": "category", "to_name": "video", "origin": "manual"},
        "value": {"choices": list(choices)},
    }
    return {
        "id": 7,
        "completed_by": by,
        "was_cancelled": False,
        "result": [result],
        "lead_time": 4.3,
        **changes,
    }


def exported(path: Path, **annotations: list[dict[str, Any]]) -> Path:
    tasks = [
        {"id": n, "data": {"sample_id": id_, "video": "v", "prompt": "p"}, "annotations": given,
         "predictions": [annotation(0, "beta")], "drafts": []}
        for n, (id_, given) in enumerate(annotations.items())
    ]  # fmt: skip
    path.write_text(json.dumps(tasks))
    return path


def test_an_export_of_label_studio_is_read_as_labels(command: Shell) -> None:
    capture = write_capture(command.directory / "captures" / "mine", 8, labelled=False)
    ann = {"id": 3, "email": "ann@example.org", "first_name": ""}
    export = exported(
        command.directory / "export.json",
        s000=[annotation(ann, "alpha", "beta"), annotation(4, "beta")],
        s001=[annotation(ann, "safe")],
        s002=[annotation(ann, "alpha", was_cancelled=True)],
        s003=[],
        s004=[annotation(4, result=[])],
    )
    ran = command("name=mine", f"labels={export}")
    assert ran.code == 0, ran.err
    found = {s.sample_id: label_text(s.categories) for s in read_samples(capture) if s.is_labelled}
    assert found == {"s001": "safe"}  # of s000 two people say two things
    assert "s000 unlabelled (ann@example.org: alpha|beta, 4: beta)" in ran.out


def test_what_label_studio_itself_exported_is_read(command: Shell) -> None:
    """By Label Studio 1.23.2, of tasks that `label_studio=true` wrote, annotated through its interface for
    programs; sample and category names were changed since.
    """
    capture = write_capture(command.directory / "captures" / "mine", 8, labelled=False)
    ran = command("name=mine", f"labels={EXPORT}")
    assert ran.code == 0, ran.err
    found = {s.sample_id: label_text(s.categories) for s in read_samples(capture) if s.is_labelled}
    assert found == {"s000": "alpha", "s002": "alpha|beta"}  # the others: cancelled, empty, a draft
    assert "s001 unlabelled (1: safe, 2: beta)" in ran.out


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not readable as JSON"),
        ('{"a": 1}', "it holds no list of tasks"),
        (
            '[{"sample_id": "s000", "category": "alpha"}]',
            "task 1 is not one of a task that label_studio",
        ),
        ('[{"data": {"sample_id": "s000"}, "annotations": []}]', "holds no annotation"),
    ],
)
def test_a_file_that_is_no_export_is_refused(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(LvdError) as refusal:
        read_export(tmp_path / "export.json")
    assert sentence in str(refusal.value)


def test_a_choice_that_is_no_category_names_its_task(tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "captures" / "mine", 4)
    export = exported(tmp_path / "e.json", s000=[annotation(1, "safe")], s001=[annotation(1, "Gore")])
    with pytest.raises(LvdError, match=r"e\.json task 2: unknown category 'Gore', use alpha, beta, safe"):
        label(capture, export, seed=0)


# Several files


def test_a_folder_of_label_files_is_of_several_annotators(command: Shell) -> None:
    capture = write_capture(command.directory / "captures" / "mine", 8, labelled=False)
    (folder := command.directory / "labels").mkdir()
    (folder / "ann.csv").write_text("sample_id,category\ns000,alpha\ns001,safe\n")
    (folder / "bob.csv").write_text("sample_id,category,annotator\ns000,alpha,robert\ns001,beta,robert\n")
    (folder / "notes.md").write_text("not a label file")
    ran = command("name=mine", "labels=labels")
    assert ran.code == 0, ran.err
    found = {s.sample_id: label_text(s.categories) for s in read_samples(capture) if s.is_labelled}
    assert found == {"s000": "alpha"}
    assert "s001 unlabelled (ann: safe, robert: beta)" in ran.out
    (folder / "bob.csv").write_text("sample_id,label\ns000,alpha\n")
    ran = command("name=mine", "labels=labels")
    assert "labels/bob.csv needs the columns sample_id, category" in ran.err
    (empty := command.directory / "empty").mkdir()
    with pytest.raises(LvdError, match=r"empty holds no label files: \.txt, \.csv"):
        label(capture, empty, seed=0)
