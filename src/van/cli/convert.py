"""``van convert IN OUT``: convert public VAN weights to a checkpoint of this package."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from van import api
from van.cli.arguments import INPUT, MODEL, OUTPUT, Command, parse
from van.cli.verbs import VERBS
from van.settings import Positional


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """Flags of ``van convert``."""

    source: Annotated[str, Positional("IN")]
    """A weights file (.pth, .pth.tar, .bin, .safetensors) or a model name such as van_b2."""
    out: Annotated[Path, Positional("OUT")]
    """The checkpoint to write, ending in .safetensors."""
    num_classes: int | None = None
    """Replace the classifier by a new one with this number of classes; 0 keeps only the backbone."""
    overwrite: bool = False
    """Replace OUT if it exists."""


COMMAND = Command(
    "convert",
    ConvertSettings,
    summary=VERBS["convert"],
    details="Reads weights of the paper's authors, Hugging Face, mmpretrain and mmsegmentation; the format is "
    "recognized from the tensor names. The checkpoint holds class names and preprocessing, too.",
    examples=(
        "van convert van_tiny_754.pth.tar van_b0.safetensors",
        "van convert van-tiny_8xb128_in1k_20220501-385941af.pth van_b0.safetensors",
        "van convert van-b2-in1kpre_upernet.pth segmenter.safetensors",
        "van convert van-b2-in1kpre_upernet.pth backbone.safetensors --num-classes 0",
    ),
    groups={
        INPUT: ("source",),
        OUTPUT: ("out", "overwrite"),
        MODEL: ("num_classes",),
    },
)


def run(arguments: Sequence[str]) -> int:
    """Load the weights strictly, write the checkpoint, and describe it; return 0."""
    settings = parse(COMMAND, arguments)
    model = api.convert(settings.source, settings.out, num_classes=settings.num_classes, overwrite=settings.overwrite)
    for note in model.notes:
        print(note, file=sys.stderr)
    rule: Any = model.preprocess
    if model.task == "classify":
        size = f"{rule.resize_size} px, center crop {rule.image_size} px"
    else:
        size = f"{rule.min_size} to {rule.max_size} px"
    head = f" with {model.options['head']}" if "head" in model.options else ""
    classes = f"{len(model.class_names)} classes" if model.class_names else "no classifier"
    print(f"{settings.out}: {model.name}{head}, {classes}, resize {size}, mean {rule.mean}")
    return 0
