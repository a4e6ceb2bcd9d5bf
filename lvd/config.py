"""The typed configuration of the three commands: every key, its meaning and its range.

Hydra refuses unknown keys and wrong types by these schemas; `__post_init__` refuses values out of range.
The rest of lvd takes plain arguments.
"""

import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore

from lvd.capture.source import Columns, Recording, Source
from lvd.decide.recipe import EvaluationRecipe
from lvd.detect.recipe import DetectorRecipe, EncoderSize, Machine, TrunkRecipe
from lvd.errors import require, require_one_of
from lvd.tracking import LoggerConfig

if TYPE_CHECKING:  # torch and lightning are not paid for by --help
    from lvd.capture.clips import ClipReading
    from lvd.capture.prompts import PromptsFile
    from lvd.uvd.importer import Videos


@dataclass(kw_only=True)
class CaptureInputs:
    """What capture.py makes a capture of, or does with one that is there."""

    source: str = "pipeline"  # conf/source/: a pipeline, clips in its place, or uvd: the paper's files
    pipeline: Source
    name: str = "demo"
    prompts: str | None = None  # .txt, .csv, .jsonl, .json or .parquet, or a folder of such files
    columns: Columns  # of prompts
    categories_map: Any = None  # {their name: a category}, of prompts; a dict has no new keys in a schema
    clip_seconds: float | None = None  # source=clips: take so much of the middle of a clip; null: all
    limit: int | None = None  # take only the first so many prompts
    safe_prompts: str | None = None  # a second such file: every prompt in it is safe
    safe_columns: Columns
    safe_limit: int | None = None
    labels: str | None = (
        None  # sets the categories of an existing capture; source=uvd: which videos are unsafe
    )
    unnamed: str | None = (
        None  # what labels= makes of samples that it does not name: unlabelled, safe or keep
    )
    agreement: float | None = None  # the share of a sample's annotators that decides; null: more than half
    pred_x0: str | None = None  # source=uvd: the videos' x0 [N, steps, C, F, H, W]
    pred_xt: str | None = None  # their latents after each step, to repair x0 with
    safe_x0: str | None = None  # the same of safe videos
    safe_xt: str | None = None
    eval: str | None = None  # which of the labelled videos are the test split
    verify: bool = False  # read the whole capture and name what is not as its manifest says
    videos_per_prompt: int = 1  # with seeds that follow the prompt's


@dataclass(kw_only=True)
class CaptureConfig(Recording, CaptureInputs):  # --help lists the fields of the last base first
    """python capture.py"""

    page: bool = False  # write label.html, a page to label the capture with, from disk and offline
    label_studio: bool = False  # write the capture as tasks of Label Studio
    run: str | None = None  # whose scores are suggested to who labels, and say which samples come first
    suggestions: str | None = None  # the same of any program: sample_id, category, score
    seed: int = 0  # of the splits, and of samples without a seed of their own
    captures: str = "captures"
    runs: str = "runs"

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        super().__post_init__()
        require(self.videos_per_prompt >= 1, f"videos_per_prompt={self.videos_per_prompt} must be at least 1")
        if self.run is not None:
            _check_name("run", self.run)
        for key in ("run", "suggestions"):
            require(
                getattr(self, key) is None or self.page or self.label_studio,
                f"{key}= is suggested to who labels: it goes with page=true or label_studio=true",
            )
        require(0 <= self.seed < 2**32, f"seed={self.seed} must be from 0 to 2^32 - 1")
        for key in ("limit", "safe_limit"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"{key}={value} must be at least 1")
        for key in ("unnamed", "agreement"):
            require(
                getattr(self, key) is None or (self.labels is not None and self.source != "uvd"),
                f"{key}= goes with labels=FILE.csv of an existing capture",
            )
        if self.unnamed is not None:
            require_one_of("unnamed", self.unnamed, ("unlabelled", "safe", "keep"))
        require(
            self.agreement is None or 0.5 < self.agreement <= 1,
            f"agreement={self.agreement} must be greater than 0.5 and at most 1",
        )
        require_one_of("source", self.source, ("pipeline", "clips", "uvd"))
        require(
            self.clip_seconds is None or (self.clip_seconds > 0 and self.source == "clips"),
            f"clip_seconds={self.clip_seconds} must be greater than 0, and goes with source=clips",
        )
        if self.source == "uvd":
            self._check_uvd()
        else:
            self._check_pipeline()

    def _check_pipeline(self) -> None:
        for key in ("pred_x0", "pred_xt", "safe_x0", "safe_xt", "eval"):
            require(getattr(self, key) is None, f"{key} is a file of the paper's code: add source=uvd")
        require(
            any((self.prompts, self.labels, self.verify, self.page, self.label_studio)),
            "give prompts=FILE.csv to capture, page=true for a page to label an existing capture with, "
            "labels=FILE.csv for its labels, or verify=true",
        )
        require(
            self.worker is None
            or (
                self.prompts is not None and not any((self.labels, self.verify, self.page, self.label_studio))
            ),
            "worker= goes with prompts=FILE.csv alone: labels=, verify=, page= and label_studio= are "
            "commands of their own",
        )
        require(
            self.safe_prompts is None or self.prompts is not None,
            "safe_prompts go with prompts=FILE: give both",
        )
        require(
            self.categories_map is None or self.prompts is not None,
            "categories_map= is of the categories in prompts=FILE: give both",
        )
        by_name = self.categories_map if self.categories_map is not None else {"": ""}
        require(
            isinstance(by_name, dict) and all(isinstance(name, str) for name in by_name.values()),
            f"categories_map={self.categories_map} must be {{THEIR NAME: CATEGORY, ...}}",
        )

    def _check_uvd(self) -> None:
        for key in ("pred_x0", "labels"):
            require(getattr(self, key) is not None, f"source=uvd needs {key}=FILE: docs/uvd.md says which")
        require(not self.preview, "preview=true needs a pipeline that is run: source=uvd has latents alone")
        require(not self.weights, "weights=true needs a pipeline that is run: source=uvd has latents alone")
        for key in ("steps", "worker"):
            require(getattr(self, key) is None, f"{key}= needs a pipeline that is run, not source=uvd")
        require(
            self.videos_per_prompt == 1, "videos_per_prompt= needs a pipeline that is run, not source=uvd"
        )
        for key in ("safe_xt", "safe_prompts"):
            require(
                getattr(self, key) is None or self.safe_x0 is not None,
                f"{key} goes with safe_x0=FILE: give both",
            )

    @property
    def directory(self) -> Path:
        return Path(self.captures) / self.name

    @property
    def run_dir(self) -> Path | None:
        return None if self.run is None else Path(self.runs) / self.run

    @property
    def suggestions_file(self) -> Path | None:
        return _path(self.suggestions)

    @property
    def clips(self) -> "ClipReading | None":
        """How the clips are read that stand in place of sampling."""
        from lvd.capture.clips import ClipReading

        return ClipReading(self.clip_seconds) if self.source == "clips" else None

    @property
    def held_out(self) -> Path | None:
        """The file that lists the test split of source=uvd."""
        return _path(self.eval)

    def prompts_file(self) -> "PromptsFile | None":
        categories_map = {str(name): category for name, category in (self.categories_map or {}).items()}
        return _prompts_file(self.prompts, self.columns, self.limit, categories_map)

    def safe_prompts_file(self) -> "PromptsFile | None":
        return _prompts_file(self.safe_prompts, self.safe_columns, self.safe_limit, {})

    def videos(self) -> "Videos":
        """The labelled videos of source=uvd."""
        from lvd.uvd.importer import Videos

        assert self.pred_x0 is not None
        return Videos(Path(self.pred_x0), _path(self.pred_xt), self.prompts_file())

    def safe_videos(self) -> "Videos | None":
        from lvd.uvd.importer import Videos

        if self.safe_x0 is None:
            return None
        return Videos(Path(self.safe_x0), _path(self.safe_xt), self.safe_prompts_file())


@dataclass(kw_only=True)
class RunConfig:
    """What train.py runs, on whatever machine."""

    task: str = "detector"  # or trunk
    name: str = "demo"
    capture: str = "${name}"
    category: str | None = None  # a name or an index; task=trunk has neither
    step: int | None = None
    seed: int = 0
    plan: bool = False  # print the grid and run nothing
    verify: bool = False  # read what stands in the run and name what is not as it was written
    force: bool = False  # run jobs that are done, too, and whatever the run's name was used for before
    fail_fast: bool = False  # start no further job once one has failed
    isolate: bool | None = None  # a process for each job; null: under ray and submitit_slurm
    encoder: EncoderSize
    trunk: TrunkRecipe
    detector: DetectorRecipe
    logger: LoggerConfig

    def __post_init__(self) -> None:
        require_one_of("task", self.task, ("trunk", "detector"))
        _check_name("name", self.name)
        _check_name("capture", self.capture)
        require(0 <= self.seed < 2**32, f"seed={self.seed} must be from 0 to 2^32 - 1")


@dataclass(kw_only=True)
class TrainConfig(Machine, RunConfig):  # --help lists the fields of the last base first
    """python train.py"""

    captures: str = "captures"
    runs: str = "runs"

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        Machine.__post_init__(self)

    @property
    def capture_dir(self) -> Path:
        return Path(self.captures) / self.capture

    @property
    def run_dir(self) -> Path:
        return Path(self.runs) / self.name


@dataclass(kw_only=True)
class MeasuredRuns:
    """What evaluate.py measures."""

    name: str = "demo"
    compare: list[str] = field(default_factory=list)  # in place of name: runs that are laid side by side
    capture: str | None = None  # null: the run's name; with compare, the one that the runs learned from

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        for name in self.compare:
            _check_name("compare", name)
        require(
            not self.compare or len(self.compare) > 1 == max(map(self.compare.count, self.compare)),
            f"compare=[{','.join(self.compare)}] must name two runs or more, each once",
        )
        if self.capture is not None:
            _check_name("capture", self.capture)


@dataclass(kw_only=True)
class EvaluateConfig(EvaluationRecipe, MeasuredRuns):
    """python evaluate.py"""

    logger: LoggerConfig
    accelerator: str = "auto"  # where detectors score and frames are decoded: a GPU if there is one; cpu
    captures: str = "captures"
    runs: str = "runs"

    def __post_init__(self) -> None:
        MeasuredRuns.__post_init__(self)
        EvaluationRecipe.__post_init__(self)
        require_one_of("accelerator", self.accelerator, ("auto", "gpu", "cpu"))

    @property
    def run_dirs(self) -> list[Path]:
        return [Path(self.runs) / name for name in self.compare or [self.name]]


def _path(path: str | None) -> Path | None:
    return None if path is None else Path(path)


def _prompts_file(
    path: str | None, columns: Columns, limit: int | None, categories_map: dict[str, str]
) -> "PromptsFile | None":
    from lvd.capture.prompts import PromptsFile

    return None if path is None else PromptsFile(Path(path), columns, limit, categories_map)


def _check_name(key: str, name: str) -> None:
    good = re.fullmatch(r"[\w-][\w.-]*", name) is not None
    require(good, f"{key}={name} must be letters, digits, '.', '_' and '-'")


# Our launcher configurations bear their plugins' names, and are checked by the plugins' schemas for that.
warnings.filterwarnings("ignore", message="\\s*'hydra/launcher/.*validated against ConfigStore schema")

# For each composition, and 90 times for --help, Hydra copies its store of schemas, which it then only reads.
ConfigStore.__deepcopy__ = lambda store, _memo: store  # type: ignore[attr-defined]

_STORE = ConfigStore.instance()
_STORE.store(name="capture_schema", node=CaptureConfig)
_STORE.store(name="train_schema", node=TrainConfig)
_STORE.store(name="evaluate_schema", node=EvaluateConfig)
