"""Small datasets of digit scenes, and untrained models of each dense task that predict something.

The weights of a model are determined by a seed; the classification layer is scaled so that some scores are high.
The predictions are wrong, but have the types and shapes of real ones.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from van.checkpoint import Checkpoint
from van.datasets.digits import LABELS
from van.datasets.scenes import write_digit_scenes
from van.heads import create_model
from van.preprocess import ResizePreprocess

SIZE_PX = 64
"""Side of the scenes in pixels."""
ANCHORS_PX = (8, 12, 16, 24, 32)
HEADS: dict[str, dict[str, Any]] = {
    "detect": {"head": "retinanet", "channels": 32, "anchor_sizes": ANCHORS_PX, "detections_per_img": 40},
    "instances": {
        "head": "mask_rcnn", "channels": 32, "anchor_sizes": ANCHORS_PX, "box_detections_per_img": 20,
        "rpn_post_nms_top_n_test": 40,
    },
    "segment": {"head": "semantic_fpn"},
    "panoptic": {
        "head": "mask2former", "queries": 20, "channels": 64, "encoder_layers": 1, "decoder_layers": 1, "points": 64,
    },
}  # fmt: skip
"""Head and options of the smallest model of each task."""


def write_scenes(folder: Path, *, train: int = 10, validation: int = 4) -> Path:
    """Write scenes of 64 px into ``folder/coco`` and ``folder/ade``; return ``folder``."""
    write_digit_scenes(folder, train=train, validation=validation, image_size=SIZE_PX)
    return folder


def as_coco2017(scenes: Path, folder: Path) -> Path:
    """Copy the images and boxes to COCO's file names of 2017; return ``folder``."""
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copytree(scenes / "coco" / split, folder / f"{split}2017")
        name = f"instances_{split}"
        shutil.copy(scenes / "coco" / "annotations" / f"{name}.json", folder / "annotations" / f"{name}2017.json")
    return folder


def dataset_root(scenes: Path, task: str) -> Path:
    """Return the folder of the layout that a task reads."""
    return scenes / ("ade" if task == "segment" else "coco")


def edit_json(path: Path, **changes: Any) -> None:
    """Replace top-level entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def task_class_names(task: str) -> tuple[str, ...]:
    """Return the classes of the scenes in the order of the task's layout."""
    if task == "segment":
        return ("background", *LABELS)
    return (*LABELS, "background") if task == "panoptic" else tuple(LABELS)


def write_dense_checkpoint(path: Path, task: str, *, min_size: int = SIZE_PX, seed: int = 0) -> Path:
    """Write a van_b0 checkpoint of a task for the classes of the scenes; return ``path``."""
    class_names, options = task_class_names(task), HEADS[task]
    torch.manual_seed(seed)
    model = create_model("van_b0", num_classes=len(class_names), options=options).eval()
    _raise_scores(model, task)
    task_options: dict[str, Any] = {}
    if task in ("detect", "instances"):
        task_options = {"category_ids": list(range(1, 1 + len(class_names)))}
    elif task == "panoptic":
        task_options = {"things": [label != "background" for label in class_names]}
    Checkpoint(
        task=task,
        model="van_b0",
        model_options=options,
        task_options=task_options,
        class_names=class_names,
        preprocess=ResizePreprocess(min_size=min_size, max_size=2 * min_size),
        state=model.state_dict(),
    ).save(path)
    return path


def _raise_scores(model: Any, task: str) -> None:
    """Scale the classification layer in place, so that scores exceed 0.3 and every class occurs."""
    layers = {
        "detect": "detector.head.classification_head.cls_logits",
        "instances": "detector.roi_heads.box_predictor.cls_score",
        "segment": "decode_head.conv_seg",
        "panoptic": "segmenter.class_predictor",
    }
    layer = model.get_submodule(layers[task])
    with torch.no_grad():
        layer.bias.fill_(-1.5 if task == "detect" else 0.0)
        layer.weight.mul_({"detect": 8000.0, "instances": 20.0, "segment": 30.0, "panoptic": 30.0}[task])
