"""The flags of ``van explain``."""

import dataclasses
from pathlib import Path
from typing import Annotated

from van.settings import Positional


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainSettings:
    """Flags of ``van explain``."""

    model_and_images: Annotated[tuple[str, ...], Positional("MODEL IMAGES...", required=True)]
    """A checkpoint, a public weights file or a model name such as van_b2; then files, folders or patterns in quotes."""
    out: Path
    """Folder for drawings, maps and charts."""
    method: tuple[str, ...] = ()
    """One or more of grad-cam, grad-cam++, layer-cam, eigen-cam, xgrad-cam; grad-cam for classification, layer-cam for
    detection and segmentation if not given."""
    layer: str | None = None
    """stage1 to stage4, stage3.block0, or the path of a module; stage4, or an earlier stage for small images."""
    classes: tuple[str, ...] = ()
    """Names or indices of the classes to explain; the predicted ones if not given."""
    top: int = 1
    """Number of predicted classes or detections to explain."""
    box: tuple[float, float, float, float] | None = None
    """Detection: explain the detection at LEFT TOP RIGHT BOTTOM, in pixels."""
    compare: bool = False
    """Draw several models side by side; every argument that is no image file, folder or pattern is a model."""
    lka: tuple[str, ...] | None = None
    """Draw LKA attention maps instead: of the last block of each stage, or of those given: stage3 or stage3.block0."""
    channels: tuple[str, ...] = ()
    """For --lka: mean, strongest, or channel indices; strongest if not given."""
    receptive_fields: bool = False
    """Measure receptive fields of one or more models instead, on the images if given, else on noise."""
    random_init: bool = False
    """For --receptive-fields: use random weights; nothing is loaded."""
    image_size: int = 224
    """For --receptive-fields: side of the input images in pixels."""
    faithfulness: bool = False
    """Evaluate the faithfulness of the maps instead, on the labeled images of --data."""
    data: Path | None = None
    """For --faithfulness: class folders, or a dataset with boxes or masks; its validation split is used."""
    limit: int | None = None
    """For --faithfulness: maximum number of images, spread evenly over the dataset; 200 if not given."""
    batch_size: int = 8
    """Images per batch."""
    device: str | None = None
    """cpu, cuda or mps; the GPU if available."""
    json: bool = False
    """Print one JSON object per line."""
