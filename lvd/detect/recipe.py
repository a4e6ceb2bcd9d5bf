"""How trunk and detectors are trained: settings that Hydra reads and that the code takes, checked.

Neither torch nor Lightning is imported here: `--help` reads these classes and waits for neither.
"""

from dataclasses import dataclass

from lvd.errors import require, require_one_of


@dataclass(kw_only=True)
class EncoderSize:
    """Size of a VideoMAE encoder: conf/encoder/."""

    width: int
    layers: int
    heads: int
    tubelet: int = 2  # frames a token
    patch: int | None = None  # latent pixels a token, in H and W; null: chosen for 64 to 512 tokens

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            require(value is None or value >= 1, f"encoder.{key}={value} must be at least 1")
        require(
            self.width % self.heads == 0,
            f"encoder.width={self.width} must be a multiple of heads={self.heads}",
        )


@dataclass(kw_only=True)
class Fit:
    """How long and how fast to learn."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    shift: int = 0  # augmentation: random shifts of up to so many latent pixels, and time reversal
    optimizer: str = "adamw"  # or adam, sgd
    schedule: str = "one_cycle"  # of the learning rate: it rises and falls; linear: it falls to 0

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"epochs={self.epochs} must be at least 1")
        require(self.batch_size >= 2, f"batch_size={self.batch_size} must be at least 2")
        require(0 < self.learning_rate < 1, f"learning_rate={self.learning_rate} must be between 0 and 1")
        require(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative")
        require(self.shift >= 0, f"shift={self.shift} must not be negative")
        require_one_of("optimizer", self.optimizer, ("adamw", "adam", "sgd"))
        require_one_of("schedule", self.schedule, ("one_cycle", "linear"))


@dataclass(kw_only=True)
class TrunkRecipe:
    """task=trunk: an epoch is `batches` random batches of (sample, step) pairs."""

    fit: Fit
    batches: int

    def __post_init__(self) -> None:
        require(self.batches >= 1, f"trunk.batches={self.batches} must be at least 1")


@dataclass(kw_only=True)
class DetectorRecipe:
    """How every detector of a grid is made: `head` and `network` say how each kind is fitted.

    `init` trunk starts from the run's trunk, scratch from random weights, auto from the trunk when there
    is one. `tuning` head fits a logistic head on the trunk's features, full tunes a copy of the trunk.
    `init` pretrained tunes the VideoMAE that `pretrained` names, on decoded frames: the paper's own method.
    """

    init: str = "auto"  # or trunk, scratch, pretrained
    pretrained: str | None = None  # with init=pretrained: hub id or folder
    revision: str | None = None  # of pretrained, on the hub
    tuning: str = "head"  # of a detector that starts from the trunk: head or full
    negatives: str = "balanced"  # safe samples: as many as unsafe ones, or all
    cache: bool = False  # a network's job reads its latents or frames once and keeps them in memory
    head: Fit
    network: Fit  # full tuning, and training from scratch or of what is pretrained

    def __post_init__(self) -> None:
        require_one_of("detector.init", self.init, ("auto", "trunk", "scratch", "pretrained"))
        require(
            (self.init == "pretrained") == (self.pretrained is not None),
            f"detector.init={self.init} detector.pretrained={self.pretrained}: init=pretrained and what is "
            "pretrained go together, as in experiment=paper",
        )
        require(
            self.revision is None or self.pretrained is not None,
            f"detector.revision={self.revision} is of detector.pretrained, which is not given",
        )
        require_one_of("detector.tuning", self.tuning, ("head", "full"))
        require_one_of("detector.negatives", self.negatives, ("balanced", "all"))


@dataclass(kw_only=True)
class Machine:
    """Where a job learns; accelerator and precision in Lightning's words."""

    accelerator: str = "auto"
    devices: int = 1  # that a trunk is trained on; a detector has one
    precision: str = "32-true"
    workers: int = 0  # processes that read latents
    threads: int | None = None  # of torch, in every job; null: torch's own choice, and 1 under joblib

    def __post_init__(self) -> None:
        require(self.workers >= 0, f"workers={self.workers} must not be negative")
        require(self.devices >= 1, f"devices={self.devices} must be at least 1")
        require(self.threads is None or self.threads >= 1, f"threads={self.threads} must be at least 1")
