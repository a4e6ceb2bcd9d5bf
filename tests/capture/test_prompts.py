"""Prompts files in every format: what is written by usual tools comes back as it was meant."""

import csv
import gzip
import io
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lvd.capture.prompts import PromptsFile, read_prompts
from lvd.capture.source import Columns
from lvd.capture.table import read_table
from lvd.errors import LvdError
from lvd.latents.format import UNLABELLED

NAMES = ("alpha", "beta")
FORMATS = ("txt", "csv", "jsonl", "parquet")

# Any script and any line's end but, in .txt, that of its lines; no half characters, which no file can hold.
any_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
one_line = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), min_size=1).filter(
    lambda text: text == text.strip() != ""
)
slow_disk = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


def write(path: Path, prompts: list[str], *, bom: bool = False, column: str = "prompt") -> Path:
    """The file that a usual tool writes of these prompts, with a second column beside."""
    start = b"\xef\xbb\xbf" if bom else b""
    if path.suffix == ".txt":
        path.write_bytes(start + "".join(f"{prompt}\n" for prompt in prompts).encode())
    elif path.suffix == ".csv":
        text = io.StringIO()
        table = csv.writer(text, quoting=csv.QUOTE_ALL)
        table.writerows([[column, "note"], *([prompt, "x"] for prompt in prompts)])
        path.write_bytes(start + text.getvalue().encode())
    elif path.suffix == ".jsonl":
        lines = [json.dumps({column: prompt, "note": 1}, ensure_ascii=False) for prompt in prompts]
        path.write_bytes(start + "".join(f"{line}\n" for line in lines).encode())
    else:
        pq.write_table(pa.table({column: prompts, "note": list(range(len(prompts)))}), path)
    return path


def prompts_of(path: Path, **options: Any) -> list[str]:
    samples = read_prompts(PromptsFile(path, **options), NAMES, seed=0)
    return [sample.prompt for sample in samples]


@pytest.mark.parametrize("ending", FORMATS)
@slow_disk
@given(data=st.data(), bom=st.booleans())
def test_prompts_come_back_as_they_were_written(
    ending: str, tmp_path: Path, data: st.DataObject, bom: bool
) -> None:
    prompts = data.draw(st.lists(one_line if ending == "txt" else any_text, min_size=1, max_size=5))
    assert prompts_of(write(tmp_path / f"p.{ending}", prompts, bom=bom)) == prompts


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_text_tables_of_pandas_are_read(ending: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt": ['"a", b\nc', "猫\u2028犬", "قطة"], "seed": [1, 2, 3]})
    frame["categories"] = ["beta", None, "alpha|beta"]
    path = tmp_path / f"p.{ending}"
    if ending == "csv":
        frame.to_csv(path, index=False)
    else:
        frame["seed"] = frame["seed"].astype(float)  # as gaps elsewhere would leave them
        frame["categories"] = [["beta"], None, ["alpha", "beta"]]
        frame.to_json(path, orient="records", lines=True)
    samples = read_prompts(PromptsFile(path), NAMES, seed=0)
    assert [(s.prompt, s.seed, s.categories) for s in samples] == [
        ('"a", b\nc', 1, ("beta",)),
        ("猫\u2028犬", 2, ()),
        ("قطة", 3, ("alpha", "beta")),
    ]


def test_parquet_of_pandas_is_read_with_gaps_lists_and_dictionaries(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "prompt": pd.Categorical(["a cat", "a dog"]),
            "sample_id": [7, 8],
            "categories": [["alpha"], None],
            "embedding": [[0.5] * 8, [0.25] * 8],
        }
    )
    frame.to_parquet(tmp_path / "p.parquet")
    samples = read_prompts(PromptsFile(tmp_path / "p.parquet"), NAMES, seed=0)
    assert [(s.sample_id, s.prompt, s.categories) for s in samples] == [
        ("7", "a cat", ("alpha",)),
        ("8", "a dog", ()),
    ]


@pytest.mark.parametrize("ending", ["txt", "csv"])
def test_utf_16_with_its_mark_is_read(ending: str, tmp_path: Path) -> None:
    (tmp_path / f"p.{ending}").write_bytes("prompt\r\nein Kätzchen\r\n".encode("utf-16"))
    assert prompts_of(tmp_path / f"p.{ending}")[-1] == "ein Kätzchen"


def test_txt_is_as_the_papers_repository_reads_it(tmp_path: Path) -> None:
    text = '  a cat, "asleep"\t\r\n#1 dog\na\u2028b\x0bc\nlast, without an end'
    (tmp_path / "prompt.txt").write_text(text, newline="")
    assert prompts_of(tmp_path / "prompt.txt") == [
        'a cat, "asleep"',
        "#1 dog",
        "a\u2028b\x0bc",
        "last, without an end",
    ]


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n \t\n\n", "\r\n\r\n"])
def test_blank_lines_at_the_end_are_no_prompts(end: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\na dog" + end, newline="")
    assert prompts_of(tmp_path / "p.txt") == ["a cat", "a dog"]


@pytest.mark.parametrize("other", ["videoid", "prompt_en", "prompt_2", "image_id", "note", "", "time"])
def test_columns_that_are_something_else_are_passed_over(other: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(f"prompt,{other}\na cat,3\n")
    assert prompts_of(tmp_path / "p.csv") == ["a cat"]


def test_a_column_beside_the_one_that_is_read_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,categories,category,Prompt,,\na cat,alpha,animals,x,,\n")
    assert prompts_of(tmp_path / "p.csv") == ["a cat"]
    (tmp_path / "p.csv").write_text("prompt,category\na cat,alpha\n")
    path = PromptsFile(tmp_path / "p.csv", Columns(categories="category"))
    assert read_prompts(path, NAMES, seed=0)[0].categories == ("alpha",)


def test_a_parquet_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(LvdError, match="names the column 'prompt' 2 times"):
        prompts_of(tmp_path / "p.parquet")


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_column_of_another_name_is_the_prompt(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"p.{ending}", ["a cat"], column="caption")
    assert prompts_of(path, columns=Columns(prompt="caption")) == ["a cat"]


@pytest.mark.parametrize("ending", FORMATS)
def test_a_limit_takes_the_first_prompts(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"p.{ending}", ["a", "b", "c"])
    assert prompts_of(path, limit=2) == ["a", "b"]
    assert prompts_of(path, limit=9) == ["a", "b", "c"]


def test_a_limit_reads_no_further(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\nnot JSON\n')
    assert prompts_of(tmp_path / "p.jsonl", limit=1) == ["a"]


def test_safe_prompts_follow_the_others_and_are_safe(tmp_path: Path) -> None:
    prompts = tmp_path / "p.csv"
    prompts.write_text("prompt,categories\na,alpha\nb,\n")
    safe = write(tmp_path / "s.jsonl", ["c", "d"], column="Caption")
    samples = read_prompts(
        PromptsFile(prompts), NAMES, seed=5, safe=PromptsFile(safe, Columns(prompt="Caption"), limit=1)
    )
    assert [(s.sample_id, s.prompt, s.seed, s.categories) for s in samples] == [
        ("0000", "a", 5, ("alpha",)),
        ("0001", "b", 6, ()),
        ("safe_0000", "c", 7, ()),
    ]


def test_safe_prompts_label_nothing_of_the_others(tmp_path: Path) -> None:
    prompts, safe = write(tmp_path / "p.txt", ["a"]), write(tmp_path / "s.txt", ["b"])
    samples = read_prompts(PromptsFile(prompts), NAMES, seed=0, safe=PromptsFile(safe))
    assert [sample.categories for sample in samples] == [UNLABELLED, ()]


def test_safe_prompts_with_a_category_are_refused(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("prompt,categories\nb,\nc,beta\n")
    with pytest.raises(LvdError, match=r"s.csv row 2 names beta, but safe_prompts are safe"):
        read_prompts(
            PromptsFile(write(tmp_path / "p.txt", ["a"])), NAMES, seed=0, safe=PromptsFile(tmp_path / "s.csv")
        )


BAD: dict[str, tuple[str, bytes, str]] = {
    "no ending": ("prompts", b"a", "must end in .txt, .csv, .jsonl, .parquet"),
    "a spreadsheet": ("p.xlsx", b"PK", "must end in .txt, .csv, .jsonl, .parquet"),
    "an empty line": ("p.txt", b"a\n\n  \nb\n\n", "line 2: the prompt is empty"),
    "blank lines alone": ("p.txt", b"\n\n", "holds no rows"),
    "an endless line": ("p.txt", b"a\n" + b"b" * 2**20, "line 2: the prompt has 1048576 characters"),
    "an endless field": ("p.csv", b"prompt\na\n" + b"b" * 2**20, "row 2: the prompt has 1048576 characters"),
    "a key twice": ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "b", "prompt": "c"}\n', "line 2 has 'prompt'"),
    "nothing": ("p.txt", b"", "holds no rows"),
    "latin-1": ("p.txt", "Kätzchen".encode("latin-1"), "is not readable as text in UTF-8"),
    "broken JSON": ("p.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "line 2 is not JSON"),
    "deep JSON": ("p.jsonl", b"[" * 100_000, "is not readable as JSONL"),
    "a list": ("p.jsonl", b'["a"]\n', "line 1 is not a JSON object"),
    "a prompt that is a number": ("p.jsonl", b'{"prompt": 1.5}\n', "line 1: prompt is 1.5, not a text"),
    "a prompt that is a list": ("p.jsonl", b'{"prompt": ["a", "b"]}\n', 'prompt is ["a", "b"], not a text'),
    "half a character": ("p.jsonl", b'{"prompt": "\\ud800"}\n', "line 1: prompt holds half of a character"),
    "a null prompt": ("p.jsonl", b'{"prompt": null}\n', "line 1: the prompt is empty"),
    "a key that comes later": (
        "p.jsonl",
        b'{"prompt": "a"}\n{"prompt": "b", "categories": "alpha"}\n',
        "line 2 and the lines before differ in having 'categories'",
    ),
    "a key that goes": (
        "p.jsonl",
        b'{"prompt": "a"}\n{"Prompt": "b"}\n',
        "line 2 and the lines before differ",
    ),
    "no such column": (
        "p.jsonl",
        b'{"Caption": "a"}\n',
        "has no column 'prompt': it has Caption; columns.prompt",
    ),
    "a huge seed": ("p.csv", b"prompt,seed\na," + b"9" * 5000, "row 1: seed '999"),
    "no parquet": ("p.parquet", b"PAR1 not at all PAR1", "is not readable as parquet"),
    "an empty parquet": ("p.parquet", b"", "is not readable as parquet"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_one_error_message(name: str, tmp_path: Path) -> None:
    file, data, sentence = BAD[name]
    (tmp_path / file).write_bytes(data)
    with pytest.raises(LvdError) as refusal:
        read_prompts(PromptsFile(tmp_path / file), NAMES, seed=0)
    assert str(refusal.value).startswith(str(tmp_path / file))
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


@slow_disk
@given(at=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_parquet_with_a_changed_byte_is_read_or_refused(tmp_path: Path, at: int, byte: int) -> None:
    data = bytearray(write(tmp_path / "p.parquet", ["a cat", "a dog"]).read_bytes())
    data[at % len(data)] = byte
    (tmp_path / "p.parquet").write_bytes(data)
    with suppress(LvdError):
        read_table(tmp_path / "p.parquet", {"prompt"})


def test_a_missing_column_that_was_named_is_missed(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", ["a"])
    with pytest.raises(LvdError, match=r"has no column 'noise': it has prompt, note; columns\.seed=NAME"):
        prompts_of(path, columns=Columns(seed="noise"))
    assert prompts_of(path) == ["a"]  # one that was not named is not


# The ready mappings, as the data sets have their columns

INTERNVID = [
    {"YoutubeID": "IZJ6Jx0Zf0c", "Start_timestamp": "00:00:19.500", "End_timestamp": "00:00:24.000",
     "Caption": "a man is riding a horse", "UMT_Score": 0.41},
    {"YoutubeID": "IZJ6Jx0Zf0c", "Start_timestamp": "00:00:24.000", "End_timestamp": "00:00:31.250",
     "Caption": "a horse in the snow", "UMT_Score": 0.44},
]  # fmt: skip
VIDPROM = (
    "uuid,prompt,time,toxicity,obscene,identity_attack,insult,threat,sexual_explicit\n"
    '6a83eb92-faa0-572b-9e1f-67dec99b711d,"Flying among clouds and stars,\nkitten Max",'
    "Sun Sep  3 12:27:44 2023,0.00129,0.00016,7e-05,0.00064,2e-05,2e-05\n"
)


def compose_capture(*line: str) -> Any:
    """The configuration as the command composes it."""
    from hydra import compose, initialize_config_dir

    import lvd.config  # noqa: F401  the schema

    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        return compose("capture", list(line))


def mapping(name: str) -> Columns:
    return Columns(**compose_capture(f"columns={name}").columns)


def test_internvids_captions_are_prompts_and_its_videos_stay_together(tmp_path: Path) -> None:
    path = tmp_path / "InternVid.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in INTERNVID))
    samples = read_prompts(PromptsFile(path, mapping("internvid")), NAMES, seed=0)
    assert not any(sample.is_labelled for sample in samples)
    assert [(s.prompt, s.prompt_id) for s in samples] == [
        ("a man is riding a horse", "IZJ6Jx0Zf0c"),
        ("a horse in the snow", "IZJ6Jx0Zf0c"),
    ]
    assert samples[0].split == samples[1].split


def test_vidproms_prompts_keep_their_ids(tmp_path: Path) -> None:
    (tmp_path / "VidProM_unique.csv").write_text(VIDPROM)
    samples = read_prompts(PromptsFile(tmp_path / "VidProM_unique.csv", mapping("vidprom")), NAMES, seed=0)
    assert not any(sample.is_labelled for sample in samples)
    assert [(s.sample_id, s.prompt) for s in samples] == [
        ("6a83eb92-faa0-572b-9e1f-67dec99b711d", "Flying among clouds and stars,\nkitten Max")
    ]


# Prompt sets as they are published; the files are made up


def test_a_folder_of_files_is_of_a_category_each(tmp_path: Path) -> None:
    (folder := tmp_path / "T2VSafetyBench").mkdir()
    for number in (1, 2, 10):
        (folder / f"{number}.txt").write_text(f"prompt of {number}\r\nanother of {number}\r\n", newline="")
    (folder / "README.md").write_text("not prompts")
    asked = {"1": "alpha", "2": "alpha", "10": "unlabelled"}
    path = PromptsFile(folder, mapping("t2vsafetybench"), categories_map=asked)
    samples = read_prompts(path, NAMES, seed=0)
    assert [(s.sample_id, s.prompt, s.categories) for s in samples] == [
        ("0000", "prompt of 1", ("alpha",)),
        ("0001", "another of 1", ("alpha",)),
        ("0002", "prompt of 2", ("alpha",)),
        ("0003", "another of 2", ("alpha",)),
        ("0004", "prompt of 10", UNLABELLED),
        ("0005", "another of 10", UNLABELLED),
    ]
    assert len(read_prompts(replace(path, limit=3), NAMES, seed=0)) == 3
    with pytest.raises(LvdError, match=r"categories_map has nothing for 2, 10: give each of them a category"):
        read_prompts(replace(path, categories_map={"1": "alpha"}), NAMES, seed=0)
    with pytest.raises(LvdError, match=r"1\.txt line 1: unknown category 'gore', use alpha, beta, safe"):
        read_prompts(replace(path, categories_map=dict.fromkeys(asked, "gore")), NAMES, seed=0)


def test_safesoras_true_names_become_categories(tmp_path: Path) -> None:
    names = ["porn", "violence", "hate", "terrorism", "contraband", "controversial", "racism"]
    names += ["other_discrimination", "animal_abuse", "child_abuse", "crime", "other_harmful"]
    given: list[list[str]] = [["violence", "crime"], [], ["porn", "hate"], ["hate"]]
    rows = [
        {
            **{"prompt_id": f"p{n}", "prompt_text": f"made up {n}", "prompt_type": "safety_critical"},
            **{"prompt_labels": {name: name in labels for name in names}, "video_id": f"v{n}"},
        }
        for n, labels in enumerate(given)
    ]
    rows[3]["prompt_labels"]["racism"] = None  # type: ignore[index]
    (tmp_path / "config-train.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    to = {**dict.fromkeys(names, "unlabelled"), "porn": "alpha", "violence": "beta", "crime": "beta"}
    path = PromptsFile(tmp_path / "config-train.json.gz", mapping("safesora"), categories_map=to)
    samples = read_prompts(path, NAMES, seed=0)
    assert [(s.prompt_id, s.prompt, s.categories) for s in samples] == [
        ("p0", "made up 0", ("beta",)),  # many to one
        ("p1", "made up 1", ()),
        ("p2", "made up 2", ("alpha",)),
        ("p3", "made up 3", UNLABELLED),
    ]


def test_i2ps_categories_are_joined_by_commas(tmp_path: Path) -> None:
    text = "prompt,categories,hard,nudity_percentage,sd_seed,sd_guidance_scale\n"
    text += 'made up,"self-harm, illegal activity",0,0.0,42,7\n"a, b",shocking,1,0.0,43,7.5\n'
    (tmp_path / "i2p.csv.gz").write_bytes(gzip.compress(text.encode()))
    to = {"self-harm": "beta", "illegal activity": "alpha", "shocking": "safe"}
    path = PromptsFile(tmp_path / "i2p.csv.gz", mapping("i2p"), categories_map=to)
    assert [(s.prompt, s.seed, s.categories) for s in read_prompts(path, NAMES, seed=0)] == [
        ("made up", 42, ("alpha", "beta")),
        ("a, b", 43, ()),
    ]


@pytest.mark.parametrize("ending", ["txt", "csv", "jsonl"])
def test_a_packed_file_is_read_as_the_file_in_it(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"p.{ending}", ["a cat", "ein Kätzchen"], bom=True)
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert prompts_of(packed) == ["a cat", "ein Kätzchen"]
    for cut in (1, 12, -3):
        packed.write_bytes(gzip.compress(path.read_bytes())[:cut])
        with pytest.raises(LvdError, match=r"is not readable as"):
            prompts_of(packed)
    packed.write_bytes(path.read_bytes())
    with pytest.raises(LvdError, match=r"is not readable as"):
        prompts_of(packed)


def test_vidprom_packed_is_read(tmp_path: Path) -> None:
    (tmp_path / "VidProM_unique.csv.gz").write_bytes(gzip.compress(VIDPROM.encode()))
    assert len(prompts_of(tmp_path / "VidProM_unique.csv.gz", columns=mapping("vidprom"))) == 1


def test_a_json_that_is_no_list_of_objects_is_refused(tmp_path: Path) -> None:
    for text, sentence in (
        ('{"prompt": "a"}', "is not a list of JSON objects"),
        ('[{"prompt": "a"}, 1]', "object 2 is not a JSON object"),
        ('[{"prompt": "a", "prompt": "b"}]', "has 'prompt' 2 times"),
        ("[", "is not readable as JSON in UTF-8"),
    ):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(LvdError) as refusal:
            prompts_of(tmp_path / "p.json")
        assert sentence in str(refusal.value)


def test_the_command_takes_a_map_and_a_folder(tmp_path: Path) -> None:
    from lvd.config import CaptureConfig
    from lvd.typed import typed

    (tmp_path / "1.txt").write_text("a cat\n")
    to = "categories_map={1: gore, self-harm: gore, a b: safe}"
    line = [f"prompts={tmp_path}", "columns=t2vsafetybench", to]
    found = typed(compose_capture(*line), CaptureConfig).prompts_file()
    assert found is not None
    assert found.categories_map == {"1": "gore", "self-harm": "gore", "a b": "safe"}
    assert [row.values["categories"] for row in found.read()] == ["1"]
    with pytest.raises(LvdError, match=r"categories_map=gore must be \{THEIR NAME: CATEGORY"):
        typed(compose_capture("prompts=p.txt", "categories_map=gore"), CaptureConfig)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LvdError, match=r"empty holds no prompts files: \.txt"):
        PromptsFile(tmp_path / "empty").read()
