"""Corrections for unknown verbs, recipes and options: by edit distance, and by the names that other tools use."""

import difflib
from collections.abc import Collection, Iterable, Mapping


def _read_table(table: Mapping[str, str]) -> Mapping[str, tuple[str, ...]]:
    """Return each name of other tools with ours; the table has several of theirs, then ours with commas between."""
    return {their: tuple(ours.split(", ")) for theirs, ours in table.items() for their in theirs.split()}


VERBS = _read_table(
    {
        "val validate validation test evaluate": "eval",
        "fit finetune": "train",
        "detect segment classify": "predict, train",
        "infer inference": "predict",
        "benchmark profile": "bench",
        "info list list-models": "models",
        "heatmap gradcam grad-cam cam": "explain",
        "deploy onnx": "export",
        "dataset datasets check": "data",
    }
)
"""Verbs of timm, torchvision, ultralytics and mmdetection, and the verbs of ``van`` that do the same."""

RECIPES = _read_table(
    {
        "classification cls fine-tune": "classify",
        "detection": "detect",
        "segmentation semantic semseg": "segment",
        "instance": "instances",
        "panoptic-segmentation": "panoptic",
        "imagenet imagenet-1k": "imagenet1k",
        "retinanet": "coco-retinanet",
        "mask-rcnn": "coco-mask-rcnn",
        "coco": "coco-retinanet, coco-mask-rcnn",
        "ade20k": "ade20k-fpn, ade20k-upernet",
        "upernet": "ade20k-upernet",
        "mnist": "digits",
    }
)

OPTIONS = _read_table(
    {
        "--imgsz --img-size --input-size --img --size --resolution": "--image-size, --min-size",
        "--train-crop-size": "--image-size, --crop-size",
        "--weights": "--init-from, MODEL, CHECKPOINT, MODEL...",
        "--checkpoint --ckpt": "--init-from, CHECKPOINT, MODEL, MODEL...",
        "--pretrained": "--init-from, MODEL, CHECKPOINT",
        "--initial-checkpoint --load-from": "--init-from",
        "--model": "MODEL, CHECKPOINT, MODEL..., --models",
        "--learning-rate --lr0": "--lr",
        "--wd": "--weight-decay",
        "--conf --conf-thres --score-thr --threshold": "--min-score",
        "--batch --bs -b": "--batch-size",
        "--project --output-dir --save-dir --work-dir --out-dir": "--out",
        "--output -o": "--out, OUT",
        "--save": "--draw, --out",
        "--show-dir": "--draw",
        "--dataset --data-dir --data-path --root": "--data, PATH",
        "--source --input": "IMAGES..., MODEL IMAGES...",
        "--image": "IMAGES..., MODEL IMAGES..., --images",
        "--amp --fp16": "--precision, --half",
        "--half --amp-dtype": "--precision",
        "--num-workers -j --nproc": "--workers",
        "--sched --lr-scheduler": "--schedule",
        "--clip --grad-clip": "--clip-grad",
        "--drop-path": "--drop-path-rate",
        "--smoothing": "--label-smoothing",
        "--aa --auto-augment": "--rand-augment",
        "--model-ema": "--ema-decay",
        "--freeze": "--freeze-backbone",
        "--grad-accumulation --accum-steps": "--grad-accum-steps",
        "--fliplr": "--hflip",
        "--val-split": "--val-fraction",
        "--topk": "--top",
        "--target-layers": "--layer",
        "--dynamic-axes": "--dynamic",
    }
)
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
