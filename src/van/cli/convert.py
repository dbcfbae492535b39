"""``van convert IN OUT``: any public VAN weights to a checkpoint of this package."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from van.cli.arguments import parse
from van.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """Flags of ``van convert``."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """A weights file (.pth, .pth.tar, .bin, .safetensors) or a model name such as van_b2."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The checkpoint to write, ending in .safetensors."""
    num_classes: int | None = None
    """Replace the classifier by a fresh one of so many classes; 0 removes it, and a head: the backbone is left."""
    overwrite: bool = False
    """Replace OUT if it exists."""


def run(arguments: Sequence[str]) -> int:
    """Read, recognise, load strictly, write."""
    settings = parse(
        ConvertSettings,
        arguments,
        verb="convert",
        description="Turn released, Hugging Face, mmpretrain or mmsegmentation weights into one safe file that holds "
        "labels and preprocessing too. The format is recognised from the tensor names; mmsegmentation's segmenters "
        "become whole segmenters.",
        examples=(
            "van convert van_tiny_754.pth.tar van_b0.safetensors",
            "van convert van-tiny_8xb128_in1k_20220501-385941af.pth van_b0.safetensors",
            "van convert van-b2-in1kpre_upernet.pth segmenter.safetensors",
            "van convert van-b2-in1kpre_upernet.pth backbone.safetensors --num-classes 0",
        ),
    )
    if settings.out.suffix != ".safetensors":
        raise UsageError(f"OUT is {settings.out}; wanted a name ending in .safetensors")
    if settings.out.exists() and not settings.overwrite:
        raise UsageError(f"{settings.out} exists; choose another name or add --overwrite")
    if settings.num_classes is not None and settings.num_classes < 0:
        raise UsageError(f"--num-classes is {settings.num_classes}; wanted at least 0")
    from van.checkpoint import Checkpoint
    from van.models.load import load
    from van.preprocess import Preprocess

    loaded = load(settings.source, num_classes=settings.num_classes)
    for note in loaded.notes:
        print(note, file=sys.stderr)
    Checkpoint(
        task=loaded.task,
        model=loaded.name,
        model_options=loaded.options,
        task_options=loaded.task_options,
        labels=loaded.labels,
        preprocess=loaded.preprocess,
        state=loaded.model.state_dict(),
        recipe=loaded.recipe,
        metrics=loaded.metrics,
        source=loaded.origin or Path(settings.source).name,
    ).save(settings.out)
    classes = f"{len(loaded.labels)} classes" if loaded.labels else "no classifier"
    rule = loaded.preprocess
    seen = (
        f"{rule.resize_px} -> {rule.size_px}" if isinstance(rule, Preprocess) else f"{rule.short_px} to {rule.long_px}"
    )
    what = f"{loaded.name} with {loaded.options['head']}" if "head" in loaded.options else loaded.name
    print(f"{settings.out}: {what}, {classes}, {seen} px, mean {rule.mean}")
    return 0
