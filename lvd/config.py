"""The typed configuration of the three commands: every key, its meaning and its range.

Hydra refuses unknown keys and wrong types by these schemas; `__post_init__` refuses values out of range.
The rest of lvd takes plain arguments.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from lvd.capture.recorder import Source
from lvd.errors import LvdError


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

    def source(self) -> Source:
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


def capture_config(cfg: DictConfig) -> CaptureConfig:
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, CaptureConfig)
    return config


def _check_name(key: str, name: str) -> None:
    _require(
        re.fullmatch(r"[\w-][\w.-]*", name) is not None, f"{key}={name} must be letters, digits, '.', '_' and '-'"
    )


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise LvdError(sentence)


_STORE = ConfigStore.instance()
_STORE.store(name="capture_schema", node=CaptureConfig)
_STORE.store(group="pipeline", name="pipeline_schema", node=PipelineConfig)
