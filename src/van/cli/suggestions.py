"""Corrections for unknown verbs, recipes and options: by edit distance, and by the names that other tools use."""

import difflib
from collections.abc import Collection, Iterable, Mapping

VERBS: Mapping[str, tuple[str, ...]] = {
    "val": ("eval",),
    "validate": ("eval",),
    "validation": ("eval",),
    "test": ("eval",),
    "evaluate": ("eval",),
    "fit": ("train",),
    "detect": ("predict", "train"),
    "infer": ("predict",),
    "inference": ("predict",),
    "segment": ("predict", "train"),
    "classify": ("predict", "train"),
    "finetune": ("train",),
    "benchmark": ("bench",),
    "profile": ("bench",),
    "info": ("models",),
    "list": ("models",),
    "list-models": ("models",),
    "heatmap": ("explain",),
    "gradcam": ("explain",),
    "grad-cam": ("explain",),
    "cam": ("explain",),
    "deploy": ("export",),
    "onnx": ("export",),
    "dataset": ("data",),
    "datasets": ("data",),
    "check": ("data",),
}
"""Verbs of timm, torchvision, ultralytics and mmdetection, and the verbs of ``van`` that do the same."""

RECIPES: Mapping[str, tuple[str, ...]] = {
    "classification": ("classify",),
    "cls": ("classify",),
    "detection": ("detect",),
    "segmentation": ("segment",),
    "semantic": ("segment",),
    "semseg": ("segment",),
    "instance": ("instances",),
    "panoptic-segmentation": ("panoptic",),
    "imagenet": ("imagenet1k",),
    "imagenet-1k": ("imagenet1k",),
    "fine-tune": ("classify",),
    "retinanet": ("coco-retinanet",),
    "mask-rcnn": ("coco-mask-rcnn",),
    "coco": ("coco-retinanet", "coco-mask-rcnn"),
    "ade20k": ("ade20k-fpn", "ade20k-upernet"),
    "upernet": ("ade20k-upernet",),
    "mnist": ("digits",),
}

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "--imgsz": ("--image-size", "--min-size"),
    "--img-size": ("--image-size", "--min-size"),
    "--input-size": ("--image-size", "--min-size"),
    "--img": ("--image-size", "--min-size"),
    "--size": ("--image-size", "--min-size"),
    "--resolution": ("--image-size", "--min-size"),
    "--train-crop-size": ("--image-size", "--crop-size"),
    "--weights": ("--init-from", "MODEL", "CHECKPOINT", "MODEL..."),
    "--checkpoint": ("--init-from", "CHECKPOINT", "MODEL", "MODEL..."),
    "--ckpt": ("--init-from", "CHECKPOINT", "MODEL", "MODEL..."),
    "--pretrained": ("--init-from", "MODEL", "CHECKPOINT"),
    "--initial-checkpoint": ("--init-from",),
    "--load-from": ("--init-from",),
    "--model": ("MODEL", "CHECKPOINT", "MODEL...", "--models"),
    "--learning-rate": ("--lr",),
    "--lr0": ("--lr",),
    "--wd": ("--weight-decay",),
    "--conf": ("--min-score",),
    "--conf-thres": ("--min-score",),
    "--score-thr": ("--min-score",),
    "--threshold": ("--min-score",),
    "--batch": ("--batch-size",),
    "--bs": ("--batch-size",),
    "-b": ("--batch-size",),
    "--project": ("--out",),
    "--output": ("--out", "OUT"),
    "--output-dir": ("--out",),
    "--save-dir": ("--out",),
    "--work-dir": ("--out",),
    "--out-dir": ("--out",),
    "-o": ("--out", "OUT"),
    "--save": ("--draw", "--out"),
    "--show-dir": ("--draw",),
    "--dataset": ("--data", "PATH"),
    "--data-dir": ("--data", "PATH"),
    "--data-path": ("--data", "PATH"),
    "--root": ("--data", "PATH"),
    "--source": ("IMAGES...", "MODEL IMAGES..."),
    "--input": ("IMAGES...", "MODEL IMAGES..."),
    "--image": ("IMAGES...", "MODEL IMAGES...", "--images"),
    "--amp": ("--precision", "--half"),
    "--half": ("--precision",),
    "--fp16": ("--precision", "--half"),
    "--amp-dtype": ("--precision",),
    "--num-workers": ("--workers",),
    "-j": ("--workers",),
    "--nproc": ("--workers",),
    "--sched": ("--schedule",),
    "--lr-scheduler": ("--schedule",),
    "--clip": ("--clip-grad",),
    "--grad-clip": ("--clip-grad",),
    "--drop-path": ("--drop-path-rate",),
    "--smoothing": ("--label-smoothing",),
    "--aa": ("--rand-augment",),
    "--auto-augment": ("--rand-augment",),
    "--model-ema": ("--ema-decay",),
    "--freeze": ("--freeze-backbone",),
    "--grad-accumulation": ("--grad-accum-steps",),
    "--accum-steps": ("--grad-accum-steps",),
    "--fliplr": ("--hflip",),
    "--val-split": ("--val-fraction",),
    "--topk": ("--top",),
    "--target-layers": ("--layer",),
    "--dynamic-axes": ("--dynamic",),
}
"""Options of those tools, and ours that mean the same: the first that the command has is suggested."""


def suggest(name: str, known: Collection[str], aliases: Mapping[str, Iterable[str]], *, most: int = 1) -> list[str]:
    """Return the names of ``known`` that ``name`` may stand for: by ``aliases`` first, then by similarity.

    Args:
        name: what the user typed.
        known: names that exist here.
        aliases: names of other tools.
        most: how many names to return at most.
    """
    listed = [target for target in aliases.get(name, ()) if target in known]
    return listed[:most] or difflib.get_close_matches(name, known, n=1, cutoff=0.6)


def did_you_mean(names: Iterable[str]) -> str:
    """Return ``; did you mean A or B?`` for a message, or nothing without names."""
    text = " or ".join(names)
    return f"; did you mean {text}?" if text else ""


def unknown_name(kind: str, name: str, known: Collection[str], aliases: Mapping[str, Iterable[str]], *, of: str) -> str:
    """Return the message for an unknown verb, recipe or sub-command: a suggestion, else the known names.

    Args:
        kind: what it is, such as ``recipe``.
        name: what the user typed.
        known: names that exist here.
        aliases: names of other tools.
        of: the command, such as ``van train``.
    """
    hint = did_you_mean(suggest(name, known, aliases, most=2)) or f": expected one of {', '.join(known)}."
    place = "" if of == "van" else f' for "{of}"'
    return f'unknown {kind} "{name}"{place}{hint} See "{of} --help"'
