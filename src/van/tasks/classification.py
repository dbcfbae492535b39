"""Image classification: one class per image.

Shapes: images (N, 3, H, W), targets (N,) int64 or (N, K) soft, outputs (N, K) logits.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.predictions import Classification
from van.tasks.base import Batch, ImageMeta, Metric, Sample, Task
from van.tasks.mixup import MixupSettings


class ClassificationTask(Task):
    """The image classification task, with mixup and cutmix if ``mix`` sets them."""

    name = "classify"
    monitor = "top1"

    def __init__(self, class_names: Sequence[str], mix: MixupSettings | None = None) -> None:
        self.class_names = tuple(class_names)
        self.options: Mapping[str, Any] = {}
        self.mix = mix or MixupSettings()
        self._mixup = None
        if self.mix.mixup or self.mix.cutmix:
            from timm.data import Mixup

            self._mixup = Mixup(
                mixup_alpha=self.mix.mixup,
                cutmix_alpha=self.mix.cutmix,
                label_smoothing=self.mix.label_smoothing,
                num_classes=len(self.class_names),
            )

    def stack(self, images: Sequence[Tensor]) -> Tensor:
        """Stack images (3, H, W) of one size into (N, 3, H, W)."""
        return torch.stack(list(images)) if images else torch.empty(0)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Stack the readable samples: images (N, 3, H, W), targets (N,)."""
        batch = super().collate(samples)
        return dataclasses.replace(batch, targets=torch.tensor(batch.targets, dtype=torch.int64))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross entropy, after mixup or cutmix if they are on."""
        images, targets = batch.images, batch.targets
        if self._mixup is None:
            return F.cross_entropy(model(images), targets, label_smoothing=self.mix.label_smoothing)
        if len(images) % 2:  # mixup needs pairs; the last image of an odd batch is paired with the first
            images, targets = torch.cat([images, images[:1]]), torch.cat([targets, targets[:1]])
        images, targets = self._mixup(images.clone(), targets)
        return F.cross_entropy(model(images), targets)

    def metric(self) -> Metric:
        """Return a metric of top-1 and top-5 accuracy, loss, calibration and, up to 2,000 classes, confusions."""
        from van.tasks.classification_metric import ClassificationMetric  # torchmetrics takes long to import

        return ClassificationMetric(self.class_names)

    def decode(self, outputs: Any, image_metas: Sequence[ImageMeta]) -> list[Classification]:
        """Return one ``Classification`` per image from logits (N, K)."""
        probabilities = outputs.float().softmax(dim=1).tolist()
        return [
            Classification(class_names=self.class_names, scores=tuple(row), name=image_meta.name)
            for row, image_meta in zip(probabilities, image_metas, strict=True)
        ]
