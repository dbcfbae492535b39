"""The smallest networks of each task that is exported, with random weights that tell classes and places apart."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torchvision.ops import MultiScaleRoIAlign

from explain.small import dense, picture, small
from van.checkpoint import Checkpoint
from van.export.formats import FORMATS, open_session
from van.export.writing import ExportOptions
from van.models.load import Loaded
from van.models.panoptic import PanopticSegmenter
from van.models.transformer_detectors import TransformerDetector
from van.models.van import STAGES
from van.ops import use_backend

TINY: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
ANCHORS_PX = (8, 12, 16, 24, 32)
_TWO_STAGES: dict[str, Any] = {
    "channels": 16,
    "anchor_sizes_px": (12, 20, 32, 48, 64),
    "rpn_pre_nms_top_n_test": 60,
    "rpn_post_nms_top_n_test": 50,
    "box_score_thresh": 0.6,
    "box_detections_per_img": 25,
}
"""So that each of the limits leaves something out."""
HEADS: dict[str, dict[str, Any]] = {
    "semantic_fpn": {"channels": 8, **TINY},
    "upernet": {"channels": 8, **TINY},
    "retinanet": {"channels": 32, "anchor_sizes_px": ANCHORS_PX, "detections_per_img": 40, **TINY},
    "fcos": {"channels": 64, "detections_per_img": 40, **TINY},
    "d_fine": {"channels": 64, "queries": 20, "decoder_layers": 2, "depth_mult": 0.34},
    "rt_detr_v2": {"channels": 64, "queries": 20, "decoder_layers": 2},
    "deformable_detr": {"channels": 64, "queries": 20, "encoder_layers": 1, "decoder_layers": 1},
    "mask2former": {"channels": 64, "queries": 20, "encoder_layers": 1, "decoder_layers": 2, "points": 64},
    "faster_rcnn": {**_TWO_STAGES, **TINY},
    "mask_rcnn": {**_TWO_STAGES, **TINY},
}
TASKS = {"semantic_fpn": "segment", "upernet": "segment", "mask_rcnn": "instances", "mask2former": "panoptic"}
_LOOKED_AT = ("sampling_offsets", "attention_weights")
_SCORES = ("cls_logits", "conv_seg", "class_embed", "enc_score_head", "class_predictor")
_LOUD = {
    "head.cls_logits": 0.1,
    "head.bbox_pred": 0.05,
    "cls_score": 1.0,
    "box_predictor.bbox_pred": 1.0,
    "fcn_logits": 2.0,
}
"""Of two stages, where most layers start too near nothing: standard deviations by the ends of names."""
LABELS = ("one & two", 'three "quoted" <four>', "fünf\n\x00")
"""Names that a careless writer of XML would lose."""


def classifier(name: str = "van_b0", *, size_px: int = 32, **options: Any) -> Loaded:
    """A network for pictures of 32 px; VAN's is one block a stage."""
    return small(name, size_px=size_px, labels=LABELS, **({**TINY, **options} if name == "van_b0" else options))


def with_head(head: str, *, short_px: int = 64) -> Loaded:
    """A network with that head, whose answers differ from place to place and from class to class."""
    loaded = dense(TASKS.get(head, "detect"), {"head": head, **HEADS[head]}, LABELS, short_px=short_px)
    torch.manual_seed(1)
    if isinstance(loaded.model, TransformerDetector | PanopticSegmenter):
        _make_small_and_loud(loaded.model)
    for name, parameter in loaded.model.named_parameters():
        if "layer_scale" in name:
            nn.init.ones_(parameter)
    for name, layer in loaded.model.named_modules():
        if isinstance(layer, nn.Conv2d) and ".head." in name:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if isinstance(layer, nn.Conv2d | nn.Linear) and (name.endswith(_SCORES) or "class_embed." in name):
            nn.init.normal_(layer.weight, std=0.1)
            nn.init.constant_(layer.bias, 0.0)
        if isinstance(layer, nn.Conv2d) and name.endswith("bbox_reg"):
            nn.init.normal_(layer.weight, std=0.02)
    if head.endswith("_rcnn"):
        _raise_second_stage(loaded.model)
    return loaded


def _raise_second_stage(network: Any) -> None:
    for name, layer in network.named_modules():
        for ending, deviation in _LOUD.items():
            if name.endswith(ending):
                nn.init.normal_(layer.weight, std=deviation)
                layer.weight.data -= layer.weight.data.mean(dim=1, keepdim=True)
        if name.endswith("cls_score"):
            layer.bias.data.copy_(torch.tensor([0.0, 0.7, -2.2, -0.4]))  # or one class would have nearly all
        if isinstance(layer, MultiScaleRoIAlign):
            layer.canonical_scale = layer.map_levels.s0 = (
                16  # or all boxes in pictures so small would be pooled from one level
            )


def _make_small_and_loud(network: TransformerDetector | PanopticSegmenter) -> None:
    """One block a stage, which a head of transformers does not offer, and layers that start near nothing louder."""
    for stage in STAGES:
        setattr(network.backbone, f"block{stage}", getattr(network.backbone, f"block{stage}")[:1])
    for name, layer in network.named_modules():
        if ".model.encoder." in name and isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if ".model.encoder." in name and isinstance(layer, nn.BatchNorm2d):  # a hundredth in RT-DETR
            nn.init.ones_(layer.weight)
        if isinstance(layer, nn.Linear) and (name.endswith(_LOOKED_AT) or "bbox_embed." in name):
            nn.init.normal_(layer.weight, std=0.1)


def written(loaded: Loaded, folder: Path, format_: str = "onnx", **options: Any) -> Path:
    """``loaded`` as a file of that format, not verified."""
    path = folder / f"network{FORMATS[format_].suffix}"
    return FORMATS[format_].write(loaded, path, options=ExportOptions(**options))


def reopened(loaded: Loaded, folder: Path, format_: str = "onnx", **options: Any) -> Any:
    """A session on such a file, with one thread."""
    return open_session(written(loaded, folder, format_, **options), threads=1)


def right_answer(loaded: Loaded, pictures: Any) -> Any:
    """What the network itself says, by the definition of its operators."""
    with torch.inference_mode(), use_backend("reference"):
        return loaded.model.eval()(pictures)


def tensors(*sizes: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    """Normalised pictures (3, rows, columns)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def write_checkpoint(loaded: Loaded, path: Path) -> Path:
    """``loaded`` as a checkpoint; returns ``path``."""
    Checkpoint(
        task=loaded.task,
        model=loaded.name,
        model_options=loaded.options,
        labels=loaded.labels,
        preprocess=loaded.preprocess,
        state=loaded.model.state_dict(),
    ).save(path)
    return path


def pictures(count: int = 3, size: tuple[int, int] | None = None) -> list[Image.Image]:
    """Coloured noise on slopes, of different sizes unless one (rows, columns) is given."""
    return [picture(*(size[::-1] if size else (80 + 7 * place, 70)), seed=place) for place in range(count)]


def with_header(path: Path, **changes: Any) -> None:
    """Write the header of an ONNX file anew, with another entry, and seal it again: what a forger would do."""
    import onnx

    from van.export.header import UNSEALED, Header, seal

    model = onnx.load(path)
    entries = {entry.key: entry for entry in model.metadata_props}
    header = dataclasses.replace(Header.from_json(entries["van"].value), **changes)
    entries["van"].value = header.to_json()
    entries["van_seal"].value = UNSEALED
    onnx.save(model, path)
    seal(path)
