"""``van convert IN OUT``: convert public VAN weights to a checkpoint of this package."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from van.cli.arguments import INPUT, MODEL, OUTPUT, Command, parse
from van.cli.verbs import VERBS
from van.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """Flags of ``van convert``."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """A weights file (.pth, .pth.tar, .bin, .safetensors) or a model name such as van_b2."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
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
    """Load the weights strictly and write the checkpoint; return 0."""
    settings = parse(COMMAND, arguments)
    if settings.out.suffix != ".safetensors":
        raise UsageError(f"OUT: expected a name ending in .safetensors, got {settings.out}")
    if settings.out.exists() and not settings.overwrite:
        raise UsageError(f"OUT: {settings.out} exists; choose another name or add --overwrite")
    if settings.num_classes is not None and settings.num_classes < 0:
        raise UsageError(f"--num-classes: expected at least 0, got {settings.num_classes}")
    from van.checkpoint import Checkpoint
    from van.models.load import load
    from van.preprocess import CenterCropPreprocess

    loaded = load(settings.source, num_classes=settings.num_classes)
    for note in loaded.notes:
        print(note, file=sys.stderr)
    Checkpoint(
        task=loaded.task,
        model=loaded.name,
        model_options=loaded.options,
        task_options=loaded.task_options,
        class_names=loaded.class_names,
        preprocess=loaded.preprocess,
        state=loaded.model.state_dict(),
        recipe=loaded.recipe,
        metrics=loaded.metrics,
        source=loaded.origin or Path(settings.source).name,
    ).save(settings.out)
    classes = f"{len(loaded.class_names)} classes" if loaded.class_names else "no classifier"
    preprocess = loaded.preprocess
    size = (
        f"resize {preprocess.resize_size} px, center crop {preprocess.image_size} px"
        if isinstance(preprocess, CenterCropPreprocess)
        else f"resize {preprocess.min_size} to {preprocess.max_size} px"
    )
    model = f"{loaded.name} with {loaded.options['head']}" if "head" in loaded.options else loaded.name
    print(f"{settings.out}: {model}, {classes}, {size}, mean {preprocess.mean}")
    return 0
