"""The typed configuration of the three commands: every key, its meaning and its range.

Hydra refuses unknown keys and wrong types by these schemas; `__post_init__` refuses values out of range.
The rest of lvd takes plain arguments.
"""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from lvd.errors import LvdError

if TYPE_CHECKING:  # torch and lightning are not paid for by --help
    from lvd.capture.recorder import Source
    from lvd.detect.training import DetectorRecipe, TrunkRecipe
    from lvd.sweep.job import Job


@dataclass
class PipelineConfig:
    """Where a generator comes from and how it is called: conf/pipeline/."""

    path: str = MISSING  # repository id or directory, given to from_pretrained
    revision: str | None = None
    pipeline_class: str = "DiffusionPipeline"  # a class of diffusers
    motion_adapter: str | None = None  # AnimateDiff: a second repository
    scheduler: str | None = None  # a class of diffusers in place of the pipeline's own
    scheduler_config: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    device: str = "auto"
    offload: bool = False  # model CPU offload, for a GPU that cannot hold the pipeline
    layout: str = "BCFHW"  # the axes of the latent that the scheduler steps
    steps: int = 50
    guidance: float = 7.5
    call: dict[str, Any] = field(default_factory=dict)  # further arguments of every call
    category_names: list[str] = MISSING

    def __post_init__(self) -> None:
        _require(self.steps >= 1, f"pipeline.steps={self.steps} must be at least 1")
        _require(
            self.dtype in ("float32", "float16", "bfloat16"),
            f"pipeline.dtype={self.dtype} must be float32, float16 or bfloat16",
        )
        _require(self.layout in ("BCFHW", "BFCHW"), f"pipeline.layout={self.layout} must be BCFHW or BFCHW")
        names = self.category_names
        _require(
            len(set(names)) == len(names) > 0 and all(re.fullmatch("[a-z][a-z0-9_]*", n) for n in names),
            "pipeline.category_names must be distinct snake_case names",
        )
        _require(
            not {"trunk", "evaluation", "bundle"} & set(names),
            "trunk, evaluation and bundle are reserved: they cannot name a category",
        )

    def source(self) -> "Source":
        from lvd.capture.recorder import Source

        return Source(**{**vars(self), "category_names": tuple(self.category_names)})


@dataclass
class CaptureConfig:
    """python capture.py"""

    pipeline: PipelineConfig = MISSING
    name: str = "demo"
    prompts: str | None = None  # CSV: prompt; optional sample_id, prompt_id, seed, categories
    labels: str | None = None  # CSV that sets the categories of an existing capture
    batch_size: int = 16  # videos in one call of the pipeline
    preview: bool = False  # also write the final videos, for people who label them
    seed: int = 0  # of the splits, and of samples without a seed of their own
    captures: str = "captures"

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        _require(self.batch_size >= 1, f"batch_size={self.batch_size} must be at least 1")
        _require(0 <= self.seed < 2**32, f"seed={self.seed} must be from 0 to 2^32 - 1")
        _require(
            self.prompts is not None or self.labels is not None,
            "give prompts=FILE.csv to capture, or labels=FILE.csv to label an existing capture",
        )


@dataclass
class EncoderConfig:
    """Size of a VideoMAE encoder: conf/encoder/."""

    width: int = MISSING
    layers: int = MISSING
    heads: int = MISSING
    tubelet: int = 2  # frames a token
    patch: int | None = None  # latent pixels a token, in H and W; null: chosen for 64 to 512 tokens

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            _require(value is None or value >= 1, f"encoder.{key}={value} must be at least 1")
        _require(
            self.width % self.heads == 0,
            f"encoder.width={self.width} must be a multiple of heads={self.heads}",
        )


@dataclass
class FitConfig:
    """How long and how fast to learn."""

    epochs: int = MISSING
    batch_size: int = MISSING
    learning_rate: float = MISSING
    weight_decay: float = MISSING
    shift: int = 0  # augmentation: random shifts of up to so many latent pixels, and time reversal

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, f"epochs={self.epochs} must be at least 1")
        _require(self.batch_size >= 2, f"batch_size={self.batch_size} must be at least 2")
        _require(0 < self.learning_rate < 1, f"learning_rate={self.learning_rate} must be between 0 and 1")
        _require(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative")
        _require(self.shift >= 0, f"shift={self.shift} must not be negative")


@dataclass
class TrunkConfig:
    """task=trunk: an epoch is `batches` random batches of (sample, step) pairs."""

    fit: FitConfig = MISSING
    batches: int = 500

    def __post_init__(self) -> None:
        _require(self.batches >= 1, f"trunk.batches={self.batches} must be at least 1")


@dataclass
class DetectorConfig:
    """The detectors of a grid."""

    init: str = "auto"  # auto: from the run's trunk when it is there; trunk; scratch
    tuning: str = "head"  # of a detector that starts from the trunk: head or full
    negatives: str = "balanced"  # safe samples: as many as unsafe ones, or all
    head: FitConfig = MISSING
    network: FitConfig = MISSING  # full tuning, and training from scratch

    def __post_init__(self) -> None:
        _one_of("detector.init", self.init, ("auto", "trunk", "scratch"))
        _one_of("detector.tuning", self.tuning, ("head", "full"))
        _one_of("detector.negatives", self.negatives, ("balanced", "all"))


@dataclass
class LoggerConfig:
    """conf/logger/: where wandb runs go."""

    project: str | None = None  # null: no wandb
    entity: str | None = None


@dataclass
class TrainConfig:
    """python train.py"""

    task: str = "detector"  # or trunk
    name: str = "demo"
    capture: str = "${name}"
    category: str | None = None  # a name or an index; task=trunk has neither
    step: int | None = None
    seed: int = 0
    plan: bool = False  # print the grid and run nothing
    force: bool = False  # run jobs that are done, too
    encoder: EncoderConfig = MISSING
    trunk: TrunkConfig = MISSING
    detector: DetectorConfig = MISSING
    logger: LoggerConfig = MISSING
    accelerator: str = "auto"
    precision: str = "32-true"
    workers: int = 0  # processes that read latents
    threads: int | None = None  # of torch, in every job; null: torch's own choice
    captures: str = "captures"
    runs: str = "runs"

    def __post_init__(self) -> None:
        _one_of("task", self.task, ("trunk", "detector"))
        _check_name("name", self.name)
        _check_name("capture", self.capture)
        _require(0 <= self.seed < 2**32, f"seed={self.seed} must be from 0 to 2^32 - 1")
        _require(self.workers >= 0, f"workers={self.workers} must not be negative")
        _require(self.threads is None or self.threads >= 1, f"threads={self.threads} must be at least 1")

    @property
    def capture_dir(self) -> Path:
        return Path(self.captures) / self.capture

    @property
    def run_dir(self) -> Path:
        return Path(self.runs) / self.name

    def job(self) -> "Job":
        """What all jobs of the run share."""
        from lvd.detect.training import Machine
        from lvd.report.wandb import WandbTarget
        from lvd.sweep.job import Job

        return Job(
            capture=self.capture_dir,
            run=self.run_dir,
            seed=self.seed,
            machine=Machine(self.accelerator, self.precision, self.workers),
            wandb=WandbTarget(self.logger.project, self.logger.entity),
            settings=asdict(self),
        )

    def trunk_recipe(self) -> "TrunkRecipe":
        from lvd.detect.training import EncoderSize, Fit, TrunkRecipe

        return TrunkRecipe(EncoderSize(**vars(self.encoder)), Fit(**vars(self.trunk.fit)), self.trunk.batches)

    def detector_recipe(self) -> "DetectorRecipe":
        from lvd.detect.training import DetectorRecipe, EncoderSize, Fit

        return DetectorRecipe(
            size=EncoderSize(**vars(self.encoder)),
            init=self.detector.init,  # type: ignore[arg-type]
            tuning=self.detector.tuning,  # type: ignore[arg-type]
            negatives=self.detector.negatives,  # type: ignore[arg-type]
            head=Fit(**vars(self.detector.head)),
            network=Fit(**vars(self.detector.network)),
        )


@dataclass
class EvaluateConfig:
    """python evaluate.py"""

    name: str = "demo"
    capture: str = "${name}"
    eta: int = 20  # the first eta steps decide
    lam: float = 0.6  # the share of them that must be flagged
    threshold: float = 0.5  # a score at or above it flags its step
    examples: int = 6  # rows of decoded x0 in the report
    show_unsafe: bool = False  # do not blur unsafe categories
    logger: LoggerConfig = MISSING
    captures: str = "captures"
    runs: str = "runs"

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        _check_name("capture", self.capture)
        _require(self.eta >= 1, f"eta={self.eta} must be at least 1")
        _require(0 < self.lam <= 1, f"lam={self.lam} must be greater than 0 and at most 1")
        _require(0 < self.threshold < 1, f"threshold={self.threshold} must be between 0 and 1")
        _require(self.examples >= 0, f"examples={self.examples} must not be negative")


ConfigT = TypeVar("ConfigT")


def typed(cfg: DictConfig, kind: type[ConfigT]) -> ConfigT:
    """Hydra's configuration as its dataclass, with every range checked.

    Raises:
        LvdError: a value is out of range or missing.
    """
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, kind)
    return config


def _check_name(key: str, name: str) -> None:
    good = re.fullmatch(r"[\w-][\w.-]*", name) is not None
    _require(good, f"{key}={name} must be letters, digits, '.', '_' and '-'")


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    _require(value in allowed, f"{key}={value} must be one of {', '.join(allowed)}")


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise LvdError(sentence)


_STORE = ConfigStore.instance()
_STORE.store(name="capture_schema", node=CaptureConfig)
_STORE.store(name="train_schema", node=TrainConfig)
_STORE.store(name="evaluate_schema", node=EvaluateConfig)
