"""What tasks, metrics and settings are called on the page, and what they mean."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from van.results.svg import THIN, share


class Word(NamedTuple):
    """A metric's title and what it says."""

    title: str
    meaning: str
    share: bool = True


DOES = {
    "classify": "to tell {classes} classes apart",
    "detect": "to find things of {classes} classes",
    "instances": "to find and outline things of {classes} classes",
    "segment": "to label every pixel with one of {classes} classes",
    "panoptic": "to give every pixel to a thing or to stuff of {classes} classes",
}
"""What a network of a task was trained to do."""

METRICS = {
    "top1": Word("Top-1 accuracy", "the share of pictures whose class is the network's first answer"),
    "top5": Word("Top-5 accuracy", "the share of pictures whose class is among its first five answers"),
    "loss": Word("Loss", "cross entropy on the held-out pictures; less is better", share=False),
    "ece": Word(
        "Calibration error", "how far its certainty is from how often it is right, mean over answers; less is better"
    ),
    "box_ap": Word("Box AP", "average precision of boxes, mean over ten demands on their overlap, IoU 0.50 to 0.95"),
    "mask_ap": Word("Mask AP", "average precision of outlines, mean over ten demands on their overlap, 0.50 to 0.95"),
    "mean_iou": Word(
        "Mean IoU", "what truth and answer share of the pixels that either gives a class, mean of classes"
    ),
    "mean_accuracy": Word("Mean accuracy", "the share of a class's pixels that is labelled so, mean of classes"),
    "pixel_accuracy": Word("Pixel accuracy", "the share of all pixels that is labelled right"),
    "iou": Word("IoU", "what truth and answer share of the pixels that either gives the class"),
    "pq": Word("Panoptic quality", "how many segments are found, times how well they are outlined"),
    "sq": Word("Segmentation quality", "how well found segments are outlined: their mean IoU"),
    "rq": Word("Recognition quality", "how many segments are found, and how few are made up"),
    "pq_things": Word("Panoptic quality of things", "of what can be counted"),
    "pq_stuff": Word("Panoptic quality of stuff", "of what cannot be counted"),
}
"""Metrics by the names that ``van eval`` gives them; the rest of COCO's are put together by ``metric_word``."""

_PARTS = {
    "ap50": ("AP at IoU 0.50", "average precision where half an overlap is enough"),
    "ap75": ("AP at IoU 0.75", "average precision where three quarters must overlap"),
    "ap_small": ("AP of small things", "at most 32 x 32 pixels"),
    "ap_medium": ("AP of medium things", "at most 96 x 96 pixels"),
    "ap_large": ("AP of large things", "more than 96 x 96 pixels"),
    "ar1": ("recall with 1 answer", "the share of marks that is found with one answer of a class in a picture"),
    "ar10": ("recall with 10 answers", "the same with ten"),
    "ar100": ("recall with 100 answers", "the same with a hundred"),
    "ar_small": ("recall of small things", "at most 32 x 32 pixels"),
    "ar_medium": ("recall of medium things", "at most 96 x 96 pixels"),
    "ar_large": ("recall of large things", "more than 96 x 96 pixels"),
}

FIRST_SETTINGS = (
    "recipe", "data", "start", "epochs", "batch_size", "lr", "weight_decay", "precision", "training_pictures",
    "validation_pictures", "seed",
)  # fmt: skip
"""The settings that a reader looks for first."""


def metric_word(name: str) -> Word:
    """A metric's title and meaning; a name that is not known stands for itself."""
    if name in METRICS:
        return METRICS[name]
    kind, _, part = name.partition("_")
    if kind in ("box", "mask") and part in _PARTS:
        title, meaning = _PARTS[part]
        return Word(f"{kind.capitalize()} {title}", meaning)
    return Word(name.replace("_", " "), "")


def figure(name: str, value: float | None) -> str:
    """A metric's value as it is read: a share in percent, anything else as a number."""
    if value is None or value != value:
        return "–"
    return share(value, places=2) if metric_word(name).share else f"{value:.4g}"


def counted(number: int, noun: str, after: str = "") -> str:
    """A number with its noun in the right form, and what comes after it."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}{after}"


def large(number: float) -> str:
    """A count in thousands, millions or billions, to three digits."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{THIN}{name}"
    return f"{number:.3g}"


def setting(value: Any) -> str:
    """A setting's value as it would be typed."""
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(setting, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {setting(inner)}" for key, inner in value.items()) or "none"
    return str(value)
