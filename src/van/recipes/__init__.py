"""Named runs as functions: each file holds recipes, their settings beside what they do.

``RECIPES`` lists them by name for the command line, without importing torch.
"""

from typing import NamedTuple


class Recipe(NamedTuple):
    """What a recipe does, in words; its module here, with ``run``; and the class of its settings there."""

    text: str
    module: str
    settings: str


RECIPES = {
    "digits": Recipe(
        "learn the 1,797 handwritten digits that scikit-learn carries; nothing to download", "digits", "DigitsSettings"
    ),
    "scenes-detect": Recipe("find digits in scenes of them; nothing to download", "scenes", "ScenesDetectSettings"),
    "scenes-instances": Recipe("outline digits in those scenes", "scenes", "ScenesInstancesSettings"),
    "scenes-segment": Recipe("label every pixel of those scenes", "scenes", "ScenesSegmentSettings"),
    "scenes-panoptic": Recipe("give every pixel there to a digit or to the ground", "scenes", "ScenesPanopticSettings"),
    "finetune": Recipe(
        "train on your own folder of class folders, from public or your own weights", "finetune", "FinetuneSettings"
    ),
    "detect": Recipe("find things in your own pictures: COCO, YOLO or Pascal VOC", "marked", "DetectSettings"),
    "instances": Recipe("find their outlines, too: COCO or YOLO", "marked", "InstancesSettings"),
    "segment": Recipe(
        "label every pixel of your own pictures: masks, ADE20K or Cityscapes", "marked", "SegmentSettings"
    ),
    "panoptic": Recipe("give every pixel to a thing or to stuff: COCO panoptic", "marked", "PanopticSettings"),
    "imagenet1k": Recipe("the paper's recipe for ImageNet-1K, from scratch", "imagenet1k", "Imagenet1kSettings"),
    "coco-retinanet": Recipe("the paper's RetinaNet on COCO, 1x or 3x", "coco", "CocoRetinanetSettings"),
    "coco-mask-rcnn": Recipe("the paper's Mask R-CNN on COCO, 1x or 3x", "coco", "CocoMaskRcnnSettings"),
    "ade20k-fpn": Recipe("the paper's Semantic FPN on ADE20K", "ade20k", "Ade20kFpnSettings"),
    "ade20k-upernet": Recipe("the paper's UPerNet on ADE20K", "ade20k", "Ade20kUpernetSettings"),
}
