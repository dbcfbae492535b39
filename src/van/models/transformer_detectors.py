"""Detection with VAN and a transformer decoder: D-FINE, RT-DETR v2 and Deformable DETR, as transformers has them.

Shapes: pictures are a list of (3, H, W) floats, normalised already, each of its own size; boxes (K, 4) as x1, y1,
x2, y2 in pixels of the picture; labels (K,) from 0. Inside, Q queries a picture: logits (N, Q, classes) and boxes
(N, Q, 4) as middle, width and height, each a fraction of a frame.

Frames. Smaller pictures are filled up at the bottom and on the right. D-FINE and RT-DETR know nothing of that: they
count in fractions of the whole canvas, and so do their targets here. Deformable DETR is told by a mask and counts
in fractions of what the mask leaves; each of its four levels (strides 8 to 64) rounds that to its own cells, so
here the mask ends at a multiple of 64, where all of them agree. Positions and first boxes depend on the canvas, and
VAN sees what lies around: in evaluation only pictures with one canvas are seen together, so that no answer depends
on the other pictures of a batch. D-FINE and RT-DETR learn sizes as fractions of the canvas, and learn them faster
from pictures that are all resized to one.

What differs from transformers' own construction, for training from scratch: VAN's BatchNorm trains; every decoder
layer has a head of its own; things are rare at the start, whatever the number of classes; Deformable DETR refines
its boxes layer by layer, starts with small ones and counts classes twice in the matching, as its authors' code does;
D-FINE's losses pair each layer's boxes with that layer's corners (transformers 5.23: the boxes of the layer before)
and so reach every layer.
Sources: Peng et al. 2024 (D-FINE), arXiv:2410.13842; Lv et al. 2024 (RT-DETRv2), arXiv:2407.17140;
Zhu et al. 2021 (Deformable DETR), arXiv:2010.04159.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, clip_boxes_to_image

from van.errors import UsageError
from van.models.canvas import Size, common_canvas, group_by_canvas, sizes_of, stack_padded
from van.models.catalogue import VARIANTS
from van.models.transformers_parts import (
    VanLevels,
    create_backbone,
    create_configuration,
    import_transformers,
    sums_by_kind,
    want_numbers,
    want_targets,
)
from van.models.van import VAN

HEADS = ("d_fine", "rt_detr_v2", "deformable_detr")
"""Detectors by transformers' names."""
_TITLES = {"d_fine": "D-FINE", "rt_detr_v2": "RT-DETR v2", "deformable_detr": "Deformable DETR"}
_LEVELS = (1, 2, 3)
_STRIDES = (8, 16, 32)
"""What the detectors see of VAN: its last three stages."""
_WEIGHTS = {
    "d_fine": dict.fromkeys(("vfl", "bbox", "giou", "fgl", "ddf"), 1.0),
    "rt_detr_v2": dict.fromkeys(("vfl", "bbox", "giou"), 1.0),
    "deformable_detr": {"ce": 1.0, "bbox": 5.0, "giou": 2.0},
}
"""Of the losses as transformers gives them; those of the first two have their weights already."""
_RARE = 0.01
"""Share of the queries expected to show a class before anything is learned."""


class TransformerDetector(nn.Module):
    """One of transformers' detectors on VAN, fresh, with the interface of ``van.models.detectors.Detector``.

    In training it takes targets and gives the weighted losses by name, whose sum is to be made small; in
    evaluation, for each picture, ``boxes``, ``labels`` and ``scores``, best first.

    Args:
        name: the VAN to build on.
        head: one of ``HEADS``.
        num_classes: classes of things, without a background.
        queries: how many things it can find; D-FINE and RT-DETR see small pictures on a canvas with enough places.
        channels: of the maps and of the queries, a multiple of 64.
        decoder_layers: of the transformer.
        detections: at most so many answers a picture.
        drop_path_rate: of VAN, in training.
        **options: other fields of transformers' configuration of that detector.

    Raises:
        MissingExtra: transformers or scipy is not installed.
        UsageError: there is no VAN, detector or option of that name, or a number is too small.
    """

    def __init__(
        self,
        name: str,
        *,
        head: str,
        num_classes: int,
        queries: int = 300,
        channels: int = 256,
        decoder_layers: int = 6,
        detections: int = 100,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise UsageError(f"there is no detector {head!r}; known: {', '.join(HEADS)}")
        numbers = {"num_classes": num_classes, "queries": queries, "decoder_layers": decoder_layers}
        want_numbers({**numbers, "detections": detections}, channels=channels)
        transformers = import_transformers(_TITLES[head])
        self.head = head
        self.num_classes = num_classes
        self.queries = queries
        self.detections = detections
        backbone = create_backbone(name, drop_path_rate=drop_path_rate)
        sizes = {
            "num_queries": queries,
            "d_model": channels,
            "encoder_ffn_dim": 4 * channels,
            "decoder_ffn_dim": 4 * channels,
            "decoder_layers": decoder_layers,
        }
        self.detector = _create(transformers, head, name, num_classes, {**sizes, **options})
        # transformers takes VAN apart into its stages, and Deformable DETR freezes its BatchNorms in any case
        self.detector.model.backbone.model = VanLevels(backbone, _LEVELS)

    @property
    def backbone(self) -> VAN:
        """The VAN inside; a classifier's weights without its head load into it."""
        return self.detector.model.backbone.model.van

    def forward(
        self, pictures: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        sizes = sizes_of(pictures)
        if self.training:
            canvas = self.canvas(sizes)
            pairs = zip(want_targets(pictures, targets), self.frames(sizes, canvas), strict=True)
            wanted = [_to_fractions(target, frame) for target, frame in pairs]
            found = self.detector(**self._inputs(pictures, canvas), labels=wanted)
            losses = sums_by_kind(found.loss_dict, _WEIGHTS[self.head])
            if (noise := getattr(self.detector.model, "denoising_class_embed", None)) is not None:
                # not used in a batch without things, where distributed training waits for its gradient all the same
                losses["vfl"] = losses["vfl"] + 0.0 * noise.weight.sum()
            return losses
        answers: dict[int, dict[str, Tensor]] = {}
        for canvas, members in group_by_canvas(sizes, self.canvas).items():
            found = self.detector(**self._inputs([pictures[member] for member in members], canvas))
            own = [sizes[member] for member in members]
            frames = self.frames(own, canvas)
            decoded = decode(found.logits, found.pred_boxes, frames=frames, sizes=own, detections=self.detections)
            answers.update(zip(members, decoded, strict=True))
        return [answers[place] for place in range(len(pictures))]

    def canvas(self, sizes: Sequence[Size]) -> Size:
        """Rows and columns on which pictures of these sizes are seen together."""
        multiple = 64 if self.head == "deformable_detr" else 32
        rows, columns = common_canvas(sizes, multiple=multiple)
        if self.head != "deformable_detr":  # their queries start from places on the canvas
            while sum((rows // stride) * (columns // stride) for stride in _STRIDES) < self.queries:
                rows, columns = (rows + 32, columns) if rows <= columns else (rows, columns + 32)
        return rows, columns

    def frames(self, sizes: Sequence[Size], canvas: Size) -> list[Size]:
        """Rows and columns that each picture's boxes are fractions of."""
        if self.head == "deformable_detr":
            return [self.canvas([size]) for size in sizes]
        return [canvas] * len(sizes)

    def _inputs(self, pictures: list[Tensor], canvas: Size) -> dict[str, Tensor]:
        inputs = {"pixel_values": stack_padded(pictures, canvas)}
        if self.head == "deformable_detr":
            frames = self.frames(sizes_of(pictures), canvas)
            inputs["pixel_mask"] = stack_padded([pictures[0].new_ones(frame) for frame in frames], canvas)
        return inputs


def decode(
    logits: Tensor, boxes: Tensor, *, frames: Sequence[Size], sizes: Sequence[Size], detections: int
) -> list[dict[str, Tensor]]:
    """What the queries say, in pixels of each picture, clipped to it, best first.

    Args:
        logits: (N, Q, classes).
        boxes: (N, Q, 4), middle, width and height as fractions of a frame.
        frames: rows and columns of it, for each picture,
        sizes: and of the picture.
        detections: at most so many a picture; what lies in the filling alone is none.
    """
    answers = []
    for picture_logits, picture_boxes, frame, size in zip(logits.float(), boxes.float(), frames, sizes, strict=True):
        corners = clip_boxes_to_image(box_convert(picture_boxes, "cxcywh", "xyxy") * _sides(frame, boxes), size)
        inside = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
        corners, scores = corners[inside], picture_logits[inside].sigmoid()
        best, places = scores.flatten().topk(min(detections, scores.numel()))
        classes = logits.shape[-1]
        answers.append({"boxes": corners[places // classes], "labels": places % classes, "scores": best})
    return answers


def _sides(frame: Size, like: Tensor) -> Tensor:
    rows, columns = frame
    return torch.tensor([columns, rows, columns, rows], dtype=torch.float32, device=like.device)


def _to_fractions(target: dict[str, Tensor], frame: Size) -> dict[str, Tensor]:
    boxes = target["boxes"].float()
    fractions = box_convert(boxes / _sides(frame, boxes), "xyxy", "cxcywh")
    return {"boxes": fractions, "class_labels": target["labels"]}


def _create(transformers: Any, head: str, name: str, num_classes: int, options: dict[str, Any]) -> Any:
    options = {
        "backbone_config": transformers.TimmBackboneConfig(backbone=name, out_indices=list(_LEVELS)),
        "num_labels": num_classes,
        "tie_word_embeddings": False,  # each decoder layer keeps a head of its own
        "auxiliary_loss": True,
        **options,
    }
    if head == "deformable_detr":
        options = {"with_box_refine": True, "class_cost": 2, **options}
        detector = transformers.DeformableDetrForObjectDetection(
            create_configuration(transformers.DeformableDetrConfig, options)
        )
        _start_deformable(detector)
        return detector
    channels = options["d_model"]
    options = {
        "encoder_in_channels": list(VARIANTS[name].dims[1:]),
        "encoder_hidden_dim": channels,
        "decoder_in_channels": [channels] * len(_LEVELS),
        "freeze_backbone_batch_norms": False,
        "initializer_bias_prior_prob": _RARE,
        **options,
    }
    if head == "d_fine":
        detector = transformers.DFineForObjectDetection(create_configuration(transformers.DFineConfig, options))
        detector.loss_function = _d_fine_losses
    else:
        detector = transformers.RTDetrV2ForObjectDetection(create_configuration(transformers.RTDetrV2Config, options))
    # the decoder's own heads answer; these are copies that nothing reads
    del detector.class_embed, detector.bbox_embed
    return detector


def _start_deformable(detector: Any) -> None:
    for number, (classes, boxes) in enumerate(zip(detector.class_embed, detector.bbox_embed, strict=True)):
        nn.init.constant_(classes.bias, -math.log((1 - _RARE) / _RARE))
        nn.init.zeros_(boxes.layers[-1].weight)
        nn.init.zeros_(boxes.layers[-1].bias)
        if number == 0:
            nn.init.constant_(boxes.layers[-1].bias[2:], -2.0)
    detector.model.decoder.bbox_embed = detector.bbox_embed


def _d_fine_losses(
    logits: Tensor,
    labels: list[dict[str, Tensor]],
    device: torch.device,
    pred_boxes: Tensor,
    config: Any,
    outputs_class: Tensor,
    outputs_coord: Tensor,
    denoising_meta_values: dict[str, Any] | None = None,
    **others: Any,
) -> tuple[Tensor, dict[str, Tensor], Any]:
    """The losses of D-FINE as transformers has them, but with each layer's boxes beside its own corners.

    The first of the (N, 1 + layers, Q, ...) answers are those before the refinement, which have no corners.
    """
    from transformers.loss.loss_d_fine import DFineForObjectDetectionLoss, DFineLoss

    _, losses, auxiliary = DFineForObjectDetectionLoss(
        logits, labels, device, pred_boxes, config, outputs_class[:, 1:], outputs_coord[:, 1:],
        denoising_meta_values=denoising_meta_values, **others,
    )  # fmt: skip
    first: dict[str, Any] = {"logits": outputs_class[:, 0], "pred_boxes": outputs_coord[:, 0].clamp(0, 1)}
    if denoising_meta_values is not None:
        parts = {name: value.split(denoising_meta_values["dn_num_split"], dim=1) for name, value in first.items()}
        first = {name: plain for name, (_, plain) in parts.items()}
        first["dn_auxiliary_outputs"] = [{name: noisy for name, (noisy, _) in parts.items()}]
        first["denoising_meta_values"] = denoising_meta_values
    found = DFineLoss(config).to(device)(first, labels)
    losses = {**losses, **{f"{name}_first": value for name, value in found.items()}}
    return sum(losses.values(), logits.new_zeros(())), losses, auxiliary
