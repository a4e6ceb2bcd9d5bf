"""Where a capture's videos come from and how they are recorded: settings for Hydra and the code, checked.

Neither torch nor diffusers is imported here: `--help` reads these classes and waits for neither.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from lvd.errors import require
from lvd.sampling.layout import LAYOUTS

FRAMES = ("num_frames", "frames", "video_length")  # what pipelines call the number of frames
# No categories: how files write what has none, and folders of a run.
_RESERVED = ("safe", "unlabelled", "trunk", "evaluation", "bundle", "bundles")


@dataclass(kw_only=True)
class Lora:
    """Weights of a LoRA that are loaded into a generator; needs peft."""

    path: str  # repository id or directory
    weight_name: str | None = None  # its file there
    revision: str | None = None
    scale: float = 1.0

    def given(self) -> dict[str, Any]:
        """What capture.json says of it: the fields that have a value."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(kw_only=True)
class Source:
    """Where a pipeline comes from and how it is called: conf/pipeline/."""

    path: str  # repository id or directory, given to from_pretrained
    revision: str | None = None
    pipeline_class: str = "DiffusionPipeline"  # a class of diffusers
    motion_adapter: str | None = None  # AnimateDiff: a second repository
    scheduler: str | None = None  # a class of diffusers in place of the pipeline's own
    scheduler_config: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    dtypes: dict[str, str] = field(default_factory=dict)  # of single components: {vae: float32}
    device: str = "auto"
    offload: bool = False  # model CPU offload, for a GPU that cannot hold the pipeline
    vae_tiling: bool = False  # decode and encode in tiles
    loras: list[Lora] = field(default_factory=list)
    free_noise: dict[str, Any] | None = None  # AnimateDiff: arguments of enable_free_noise, for long videos
    step_cache: dict[str, Any] | None = None  # enable_cache: `config`, its class, and its options
    layout: str | None = None  # the axes of the latent that the scheduler steps; null: by the class
    steps: int = 50
    guidance: float | None = 7.5  # null: the pipeline takes none
    call: dict[str, Any] = field(default_factory=dict)  # further arguments of every call
    category_names: list[str]

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"pipeline.steps={self.steps} must be at least 1")
        dtypes = {"dtype": self.dtype, **{f"dtypes.{part}": dtype for part, dtype in self.dtypes.items()}}
        for key, dtype in dtypes.items():
            require(
                dtype in ("float32", "float16", "bfloat16"),
                f"pipeline.{key}={dtype} must be float32, float16 or bfloat16",
            )
        require(
            self.layout is None or self.layout in LAYOUTS,
            f"pipeline.layout={self.layout} must be {', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}",
        )
        for name in (*FRAMES, "height", "width"):
            size = self.call.get(name)
            require(type(size) is not int or size >= 1, f"pipeline.call.{name}={size} must be at least 1")
        names = self.category_names
        require(len(names) > 0, "pipeline.category_names is empty: name one category at least")
        for name in names:
            require(
                re.fullmatch("[a-z][a-z0-9_]{0,99}", name) is not None,
                f"pipeline.category_names: {name!r} must be snake_case, a to z, digits and _",
            )
            require(names.count(name) == 1, f"pipeline.category_names: {name} appears twice")
            require(
                name not in _RESERVED,
                f"pipeline.category_names: {name} is reserved, as {', '.join(_RESERVED)} are",
            )

    def settings(self) -> dict[str, Any]:
        """The fields of capture.json that are known before the pipeline is loaded."""
        return {
            "pipeline": self.path,
            **({"scheduler": self.scheduler} if self.scheduler is not None else {}),
            "revision": self.revision,
            **({"layout": self.layout} if self.layout is not None else {}),
            "steps": self.steps,
            "guidance": self.guidance,
            "call": self.call,
            "category_names": tuple(self.category_names),
            "parts": self.parts(),
        }

    def parts(self) -> dict[str, Any]:
        """What goes into the pipeline besides its repository."""
        parts = {
            "motion_adapter": self.motion_adapter,
            "loras": [lora.given() for lora in self.loras],
            "free_noise": self.free_noise,
            "step_cache": self.step_cache,
        }
        return {name: part for name, part in parts.items() if part}


@dataclass(kw_only=True)
class Columns:
    """What a prompts file calls its columns: conf/columns/."""

    prompt: str = "prompt"
    sample_id: str = "sample_id"
    prompt_id: str = "prompt_id"
    seed: str = "seed"
    categories: str = "categories"  # names joined by |, or a list of them
    image: str = "image"  # paths from the file's own place, for pipelines that make videos from them
    video: str = "video"


@dataclass(kw_only=True)
class Recording:
    """What is stored of each sampling, and which process makes how much of it at a time."""

    steps: str | None = None  # 0..19: store only these, which a decision with eta=20 needs; null: all
    worker: int | None = None  # this process makes every `workers`-th batch, beside the others
    workers: int = 1
    batch_size: int = 16  # videos in one call of the pipeline
    preview: bool = False  # also write the final videos, for people who label them
    weights: bool = False  # also record a digest over the networks' weights, which a guard then compares

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"batch_size={self.batch_size} must be at least 1")
        require(self.workers >= 1, f"workers={self.workers} must be at least 1")
        if self.worker is None:
            require(self.workers == 1, f"workers={self.workers} needs worker=0..{self.workers - 1}")
        else:
            require(
                0 <= self.worker < self.workers,
                f"worker={self.worker} must be from 0 to workers - 1, which is {self.workers - 1}",
            )
        require(
            self.steps is None or re.fullmatch(r"0\.\.\d{1,6}", self.steps) is not None,
            f"steps={self.steps} must be 0..N: a decision needs every step from the first, 0..19 for eta=20",
        )

    @property
    def recorded_steps(self) -> int | None:
        """How many steps are stored, from the first; None: all of them."""
        return None if self.steps is None else int(self.steps.removeprefix("0..")) + 1
