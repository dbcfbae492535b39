"""Digit scenes as small marked data sets, and networks that answer something without having learnt anything.

A network of each task follows from its seed alone; the layers that decide whether anything is found at all are
raised, so that a few queries and anchors speak up. What they say is wrong and does not matter: its form does.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from van.checkpoint import Checkpoint
from van.data.digits import LABELS
from van.data.scene_files import write_digit_scenes
from van.models.load import create
from van.preprocess import WholePreprocess

SIZE_PX = 64
"""Side of the scenes."""
ANCHORS_PX = (8, 12, 16, 24, 32)
HEADS: dict[str, dict[str, Any]] = {
    "detect": {"head": "retinanet", "channels": 32, "anchor_sizes_px": ANCHORS_PX, "detections_per_img": 40},
    "instances": {
        "head": "mask_rcnn", "channels": 32, "anchor_sizes_px": ANCHORS_PX, "box_detections_per_img": 20,
        "rpn_post_nms_top_n_test": 40,
    },
    "segment": {"head": "semantic_fpn"},
    "panoptic": {
        "head": "mask2former", "queries": 20, "channels": 64, "encoder_layers": 1, "decoder_layers": 1, "points": 64,
    },
}  # fmt: skip
"""Head and options of the smallest network of each task."""


def write_scenes(folder: Path, *, train: int = 10, validation: int = 4) -> Path:
    """``folder/coco`` and ``folder/ade`` with scenes of 64 px; returns ``folder``."""
    write_digit_scenes(folder, train=train, validation=validation, size_px=SIZE_PX)
    return folder


def as_coco2017(scenes: Path, folder: Path) -> Path:
    """The same pictures and boxes under COCO's own names of 2017; returns ``folder``."""
    (folder / "annotations").mkdir(parents=True)
    for part in ("train", "val"):
        shutil.copytree(scenes / "coco" / part, folder / f"{part}2017")
        name = f"instances_{part}"
        shutil.copy(scenes / "coco" / "annotations" / f"{name}.json", folder / "annotations" / f"{name}2017.json")
    return folder


def set_of(scenes: Path, task: str) -> Path:
    """The layout that a task reads."""
    return scenes / ("ade" if task == "segment" else "coco")


def edit_json(path: Path, **changes: Any) -> None:
    """Replace top-level entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def labels_of(task: str) -> tuple[str, ...]:
    """The classes of the scenes, in the order of each layout."""
    if task == "segment":
        return ("ground", *LABELS)
    return (*LABELS, "ground") if task == "panoptic" else tuple(LABELS)


def write_marked_checkpoint(path: Path, task: str, *, short_px: int = SIZE_PX, seed: int = 0) -> Path:
    """A van_b0 of that task over the classes of the scenes; returns ``path``."""
    labels, options = labels_of(task), HEADS[task]
    torch.manual_seed(seed)
    network = create("van_b0", num_classes=len(labels), options=options).eval()
    _speak_up(network, task)
    task_options: dict[str, Any] = {}
    if task in ("detect", "instances"):
        task_options = {"category_ids": list(range(1, 1 + len(labels)))}
    elif task == "panoptic":
        task_options = {"things": [label != "ground" for label in labels]}
    Checkpoint(
        task=task,
        model="van_b0",
        model_options=options,
        task_options=task_options,
        labels=labels,
        preprocess=WholePreprocess(short_px=short_px, long_px=2 * short_px),
        state=network.state_dict(),
    ).save(path)
    return path


def _speak_up(network: Any, task: str) -> None:
    """Raise what is answered, in place: scores above 0.3, and every class now and then."""
    layers = {
        "detect": "detector.head.classification_head.cls_logits",
        "instances": "detector.roi_heads.box_predictor.cls_score",
        "segment": "decode_head.conv_seg",
        "panoptic": "segmenter.class_predictor",
    }
    layer = network.get_submodule(layers[task])
    with torch.no_grad():
        layer.bias.fill_(-1.5 if task == "detect" else 0.0)
        layer.weight.mul_({"detect": 8000.0, "instances": 20.0, "segment": 30.0, "panoptic": 30.0}[task])
