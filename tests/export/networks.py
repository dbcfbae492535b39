"""Minimal networks of each exported task, with random weights whose outputs differ between classes and positions."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torchvision.ops import MultiScaleRoIAlign

from explain.small_models import dense, image, small
from van.backbones.van import STAGES
from van.checkpoint import Checkpoint
from van.export.formats import FORMATS, open_session
from van.export.writing import ExportOptions
from van.heads.panoptic_segmenter import PanopticSegmenter
from van.heads.transformer_detector import TransformerDetector
from van.model import Model
from van.ops import use_backend

TINY: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}
ANCHORS_PX = (8, 12, 16, 24, 32)
_TWO_STAGE: dict[str, Any] = {
    "channels": 16,
    "anchor_sizes": (12, 20, 32, 48, 64),
    "rpn_pre_nms_top_n_test": 60,
    "rpn_post_nms_top_n_test": 50,
    "box_score_thresh": 0.6,
    "box_detections_per_img": 25,
}
"""Each limit removes some boxes, so that tests cover it."""
HEADS: dict[str, dict[str, Any]] = {
    "semantic_fpn": {"channels": 8, **TINY},
    "upernet": {"channels": 8, **TINY},
    "retinanet": {"channels": 32, "anchor_sizes": ANCHORS_PX, "detections_per_img": 40, **TINY},
    "fcos": {"channels": 64, "detections_per_img": 40, **TINY},
    "d_fine": {"channels": 64, "queries": 20, "decoder_layers": 2, "depth_mult": 0.34},
    "rt_detr_v2": {"channels": 64, "queries": 20, "decoder_layers": 2},
    "deformable_detr": {"channels": 64, "queries": 20, "encoder_layers": 1, "decoder_layers": 1},
    "mask2former": {"channels": 64, "queries": 20, "encoder_layers": 1, "decoder_layers": 2, "points": 64},
    "faster_rcnn": {**_TWO_STAGE, **TINY},
    "mask_rcnn": {**_TWO_STAGE, **TINY},
}
TASKS = {"semantic_fpn": "segment", "upernet": "segment", "mask_rcnn": "instances", "mask2former": "panoptic"}
_ATTENTION_LAYERS = ("sampling_offsets", "attention_weights")
_CLASS_LAYERS = ("cls_logits", "conv_seg", "class_embed", "enc_score_head", "class_predictor")
_WEIGHT_STD = {
    "head.cls_logits": 0.1,
    "head.bbox_pred": 0.05,
    "cls_score": 1.0,
    "box_predictor.bbox_pred": 1.0,
    "fcn_logits": 2.0,
}
"""Standard deviations of two-stage weights by the ends of their names; the default ones are too small to matter."""
LABELS = ("one & two", 'three "quoted" <four>', "fünf\n\x00")
"""Names that need escaping in XML."""


def build_classifier(name: str = "van_b0", *, image_size: int = 32, **options: Any) -> Model:
    """Return a network for images of 32 px; a VAN has one block per stage."""
    return small(
        name, image_size=image_size, class_names=LABELS, **({**TINY, **options} if name == "van_b0" else options)
    )


def build_with_head(head: str, *, min_size: int = 64) -> Model:
    """Return a network with that head, whose outputs differ between positions and classes."""
    loaded = dense(TASKS.get(head, "detect"), {"head": head, **HEADS[head]}, LABELS, min_size=min_size)
    torch.manual_seed(1)
    if isinstance(loaded.network, TransformerDetector | PanopticSegmenter):
        _amplify_transformer(loaded.network)
    for name, parameter in loaded.network.named_parameters():
        if "layer_scale" in name:
            nn.init.ones_(parameter)
    for name, layer in loaded.network.named_modules():
        if isinstance(layer, nn.Conv2d) and ".head." in name:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if isinstance(layer, nn.Conv2d | nn.Linear) and (name.endswith(_CLASS_LAYERS) or "class_embed." in name):
            nn.init.normal_(layer.weight, std=0.1)
            nn.init.constant_(layer.bias, 0.0)
        if isinstance(layer, nn.Conv2d) and name.endswith("bbox_reg"):
            nn.init.normal_(layer.weight, std=0.02)
    if head.endswith("_rcnn"):
        _amplify_second_stage(loaded.network)
    return loaded


def _amplify_second_stage(network: Any) -> None:
    for name, layer in network.named_modules():
        for ending, deviation in _WEIGHT_STD.items():
            if name.endswith(ending):
                nn.init.normal_(layer.weight, std=deviation)
                layer.weight.data -= layer.weight.data.mean(dim=1, keepdim=True)
        if name.endswith("cls_score"):
            layer.bias.data.copy_(torch.tensor([0.0, 0.7, -2.2, -0.4]))  # or one class would get nearly all detections
        if isinstance(layer, MultiScaleRoIAlign):
            layer.canonical_scale = layer.map_levels.s0 = (
                16  # or all boxes of small images would be pooled from one level
            )


def _amplify_transformer(network: TransformerDetector | PanopticSegmenter) -> None:
    """Keep one block per stage, which transformer heads have no option for, and enlarge near-zero initial weights."""
    for stage in STAGES:
        setattr(network.backbone, f"block{stage}", getattr(network.backbone, f"block{stage}")[:1])
    for name, layer in network.named_modules():
        if ".model.encoder." in name and isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if ".model.encoder." in name and isinstance(layer, nn.BatchNorm2d):  # RT-DETR initializes it to 0.01
            nn.init.ones_(layer.weight)
        if isinstance(layer, nn.Linear) and (name.endswith(_ATTENTION_LAYERS) or "bbox_embed." in name):
            nn.init.normal_(layer.weight, std=0.1)


def export_file(loaded: Model, folder: Path, format_: str = "onnx", **options: Any) -> Path:
    """Export ``loaded`` without verification and return the path."""
    path = folder / f"network{FORMATS[format_].suffix}"
    return FORMATS[format_].write(loaded, path, options=ExportOptions(**options))


def export_and_open(loaded: Model, folder: Path, format_: str = "onnx", **options: Any) -> Any:
    """Export ``loaded`` and open a session with one thread."""
    return open_session(export_file(loaded, folder, format_, **options), threads=1)


def reference_output(loaded: Model, images: Any) -> Any:
    """Return the network's outputs, computed with the reference operators."""
    with torch.inference_mode(), use_backend("reference"):
        return loaded.network.eval()(images)


def tensors(*sizes: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    """Return normalized images (3, rows, columns)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def write_checkpoint(loaded: Model, path: Path) -> Path:
    """Write ``loaded`` as a checkpoint and return ``path``."""
    Checkpoint(
        task=loaded.task,
        model=loaded.name,
        model_options=loaded.options,
        class_names=loaded.class_names,
        preprocess=loaded.preprocess,
        state=loaded.network.state_dict(),
    ).save(path)
    return path


def images(count: int = 3, size: tuple[int, int] | None = None) -> list[Image.Image]:
    """Return colored noise on gradients, in different sizes unless ``size`` (rows, columns) is given."""
    return [image(*(size[::-1] if size else (80 + 7 * place, 70)), seed=place) for place in range(count)]


def rewrite_header(path: Path, **changes: Any) -> None:
    """Change the header of an ONNX file and recompute its checksum, as an attacker could."""
    import onnx

    from van.export.header import CHECKSUM_PLACEHOLDER, Header, write_checksum

    model = onnx.load(path)
    entries = {entry.key: entry for entry in model.metadata_props}
    header = dataclasses.replace(Header.from_json(entries["van"].value), **changes)
    entries["van"].value = header.to_json()
    entries["van_checksum"].value = CHECKSUM_PLACEHOLDER
    onnx.save(model, path)
    write_checksum(path)
