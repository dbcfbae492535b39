"""The flags of ``van explain``, which has several jobs."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainSettings:
    """Flags of ``van explain``."""

    words: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(name="model-and-pictures", metavar="MODEL PICTURES...", help_behavior_hint="(required)"),
    ]
    """A checkpoint, a public weights file or a name such as van_b2, then files, folders, or patterns in quotes."""
    out: Path
    """Folder for the pictures, maps and figures."""
    method: tuple[str, ...] = ()
    """grad-cam, grad-cam++, layer-cam, eigen-cam or xgrad-cam, one or several; grad-cam for classes and
    layer-cam for things and regions if not given."""
    layer: str | None = None
    """stage1 to stage4, stage3.block0, or the path of a module; stage4, or on small pictures an earlier one."""
    classes: tuple[str, ...] = ()
    """Explain these, by name or number, not what the network says."""
    top: int = 1
    """Explain so many of the network's answers."""
    box: tuple[float, float, float, float] | None = None
    """Detection: explain what is found at LEFT TOP RIGHT BOTTOM, in pixels."""
    compare: bool = False
    """Several models side by side: every word that is no picture is a model."""
    lka: tuple[str, ...] | None = None
    """Instead draw LKA's own attention; of the last block of each stage, or of those named: stage3 or stage3.block0."""
    channels: tuple[str, ...] = ()
    """For --lka: mean, strongest, or numbers of channels; the strongest if not given."""
    fields: bool = False
    """Instead measure receptive fields of one model or several; pictures may be given, else noise is used."""
    fresh: bool = False
    """For --fields: random weights; nothing is loaded."""
    size_px: int = 224
    """For --fields: side of what the networks see."""
    score: bool = False
    """Instead measure how faithful the maps are, on the labelled pictures of --data."""
    data: Path | None = None
    """For --score: class folders, or a set with boxes or masks, whose held-out part is taken."""
    limit: int | None = None
    """For --score: so many pictures, from all over the set; 200 if not given."""
    batch_size: int = 8
    """Pictures at once."""
    device: str | None = None
    """cpu, cuda or mps; the GPU where there is one."""
    json: bool = False
    """Print JSON, one object a line."""
