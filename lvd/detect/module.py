"""How trunk and detectors are trained: two LightningModules."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryF1Score,
    BinaryRecall,
    BinarySpecificity,
)
from torchmetrics.functional.classification import binary_auroc

from lvd.detect.network import Detector, HeadDetector, Trunk
from lvd.detect.recipe import Fit


def augment(x_BCFHW: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Shift each sample by up to `shift` latent pixels in H and W, and reverse half of them in time."""
    if shift == 0:
        return x_BCFHW
    samples, channels, frames, height, width = x_BCFHW.shape
    device = x_BCFHW.device
    offset_B2 = (torch.randint(0, 2 * shift + 1, (samples, 2), generator=generator) - shift).to(device)
    reverse_B1 = (torch.rand(samples, 1, generator=generator) < 0.5).to(device)
    frame_F = torch.arange(frames, device=device)
    frame_BF = torch.where(reverse_B1, frames - 1 - frame_F, frame_F)
    row_BH = (torch.arange(height, device=device) + offset_B2[:, :1]).clamp(0, height - 1)  # edges repeat
    column_BW = (torch.arange(width, device=device) + offset_B2[:, 1:]).clamp(0, width - 1)
    row_BFHW = frame_BF[:, :, None, None] * height + row_BH[:, None, :, None]
    place_B1N = (row_BFHW * width + column_BW[:, None, None, :]).reshape(samples, 1, -1)
    # One gather: a slice for each sample would keep a GPU waiting for Python.
    return x_BCFHW.flatten(2).gather(2, place_B1N.expand(-1, channels, -1)).view_as(x_BCFHW)


class TrunkModule(LightningModule):
    """All categories at all steps: weighted binary cross-entropy."""

    positive_weight: Tensor

    def __init__(
        self,
        trunk: Trunk,
        category_names: Sequence[str],
        fit: Fit,
        *,
        positive_weight: Tensor,
        seed: int,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.category_names = tuple(category_names)
        self.fit = fit
        self.register_buffer("positive_weight", positive_weight)
        self._augmentation = torch.Generator().manual_seed(seed)
        self._seed = seed
        self._validated: list[tuple[Tensor, Tensor]] = []  # scores and labels, of this epoch

    def on_train_start(self) -> None:
        if self.global_rank > 0:  # what the first process draws is in checkpoints
            self._augmentation.manual_seed(self._seed + 1000 * self.global_rank + self.current_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["augmentation"] = self._augmentation.get_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._augmentation.set_state(checkpoint["augmentation"])

    def training_step(self, batch: tuple[Tensor, ...], _index: int) -> Tensor:
        x0, step, target, weight = batch
        x = augment(self.trunk.standardise(x0, step), self.fit.shift, self._augmentation)
        logits = self.trunk.output(self.trunk.pool(x, step))
        loss = self._loss(logits, target, weight)
        self.log("train/loss", loss, batch_size=len(x0))
        return loss

    def validation_step(self, batch: tuple[Tensor, ...], _index: int) -> None:
        x0, step, target, weight = batch
        logits = self.trunk(x0, step)
        self.log("val/loss", self._loss(logits, target, weight), batch_size=len(x0))
        self._validated.append((logits.float().sigmoid(), torch.where(weight > 0, target, -1).long()))

    def on_validation_epoch_end(self) -> None:
        scores_BK, label_BK = (torch.cat(parts) for parts in zip(*self._validated, strict=True))
        self._validated.clear()
        per_category = torch.stack(
            [
                binary_auroc(scores_B, label_B, ignore_index=-1)
                for scores_B, label_B in zip(scores_BK.T, label_BK.T, strict=True)
            ]
        )
        for name, value in zip(self.category_names, per_category, strict=True):
            self.log(f"val/auroc/{name}", value)
        self.log("val/auroc", per_category.mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return _optimizer(self, self.fit)

    def _loss(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        weight = weight * torch.where(target > 0, self.positive_weight, 1.0)
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (losses * weight).sum() / weight.sum()


class DetectorModule(LightningModule):
    """One cell: balanced binary cross-entropy, threshold 0.5."""

    positive_weight: Tensor

    def __init__(
        self,
        detector: Detector,
        fit: Fit,
        *,
        positive_weight: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.fit = fit
        self.register_buffer("positive_weight", torch.tensor(positive_weight))
        self._augmentation = torch.Generator().manual_seed(seed)
        self.metrics = MetricCollection(
            {
                "accuracy": BinaryAccuracy(),
                "auroc": BinaryAUROC(),
                "f1": BinaryF1Score(),
                "tpr": BinaryRecall(),
                "tnr": BinarySpecificity(),
            },
            compute_groups=False,
        )

    def training_step(self, batch: tuple[Tensor, Tensor], _index: int) -> Tensor:
        inputs, label = batch
        if isinstance(self.detector, HeadDetector):
            logits = self.detector(inputs)
        else:
            standardised = augment(self.detector.standardise(inputs), self.fit.shift, self._augmentation)
            logits = self.detector.classify(standardised)
        loss = self._loss(logits, label)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(label))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        inputs, label = batch
        logits = self.detector(inputs)
        self.log("val/loss", self._loss(logits, label), batch_size=len(label))
        self.metrics.update(logits.sigmoid(), label)

    def on_validation_epoch_end(self) -> None:
        values = {name: value.item() for name, value in self.metrics.compute().items()}
        self.metrics.reset()
        values["fpr"] = 1.0 - values.pop("tnr")
        self.log_dict({f"val/{name}": value for name, value in values.items()})

    def configure_optimizers(self) -> Any:
        return _optimizer(self, self.fit)

    def _loss(self, logits: Tensor, label: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, label.float(), pos_weight=self.positive_weight)


def _optimizer(module: LightningModule, fit: Fit) -> dict[str, Any]:
    """An optimiser whose learning rate rises and falls (one_cycle), or falls from the first step on to 0."""
    classes = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    optimizer = classes[fit.optimizer](
        module.parameters(), lr=fit.learning_rate, weight_decay=fit.weight_decay
    )
    total = int(module.trainer.estimated_stepping_batches)
    schedule: Any
    if fit.schedule == "linear":
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total))
    else:
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, fit.learning_rate, total_steps=total)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
