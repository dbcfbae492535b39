"""The whole export: choose the format and the images for the comparison, quantize, write, verify, describe the file."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from van.errors import UsageError
from van.export.formats import FORMATS, Format, format_of, open_session
from van.export.header import Header, file_sha256
from van.export.verify import Verification, synthetic_images, write_verified
from van.export.writing import ExportOptions, check_exportable, with_image_size
from van.images import expand_images, read_image
from van.model import Model
from van.preprocess import CenterCropPreprocess

_SYNTHETIC_IMAGES, _MAX_VERIFICATION_IMAGES, _MAX_CALIBRATION_IMAGES = 4, 16, 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported file: its path and size, its header, the comparison with PyTorch, and messages for the user."""

    path: Path
    num_bytes: int
    header: Header
    verification: Verification
    seconds: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, those of ``van export --json``."""
        header = self.header
        return {
            "out": str(self.path),
            "format": header.format,
            "task": header.task,
            "model": header.model,
            "precision": header.precision,
            "dynamic": header.dynamic,
            "inputs": {name: list(shape) for name, shape in header.inputs.items()},
            "opset": header.opset,
            "bytes": self.num_bytes,
            "seconds": round(self.seconds, 2),
            "notes": list(header.notes),
            "verification": self.verification.to_dict(),
        }


def find_format(name: str | None, path: Path, *, int8: bool = False) -> Format:
    """Return the format of that name, or that of the file's suffix if None.

    Raises:
        UsageError: there is no such format, the file has another suffix, or the format has no int8.
    """
    chosen = format_of(path) if name is None else FORMATS.get(name)
    if chosen is None or not path.name.lower().endswith(chosen.suffix):
        suffixes = ", ".join(each.suffix for each in FORMATS.values()) if chosen is None else chosen.suffix
        raise UsageError(f"out: expected a name ending in {suffixes}, got {path}")
    if int8 and chosen.name != "openvino":
        raise UsageError(f"int8: expected the format openvino, got {chosen.name}")
    return chosen


def write_export(
    model: Model,
    path: Path,
    format_: Format,
    *,
    dynamic: bool,
    half: bool,
    batch_size: int,
    image_size: int | None,
    images: Sequence[str | Path],
    tolerance: float | None,
    calibration_data: str | Path | None,
    max_accuracy_drop: float,
) -> Exported:
    """Write and verify the file; arguments as those of ``van.api.export``."""
    start = time.perf_counter()
    check_exportable(model, dynamic=dynamic)
    source = Path(model.source)
    options = ExportOptions(
        dynamic=dynamic, half=half, batch_size=batch_size, source=file_sha256(source) if source.is_file() else ""
    )
    model = with_image_size(model, image_size)
    sources = images or (() if calibration_data is None else (calibration_data,))
    compared = [read_image(each) for each in _sample_paths(sources, _MAX_VERIFICATION_IMAGES)]
    options, compared, notes = _verification_images(model, options, compared)
    if calibration_data is not None:
        from van.export.int8 import write

        paths = _sample_paths([calibration_data], _MAX_CALIBRATION_IMAGES)
        indices = {name: index for index, name in enumerate(model.class_names)}
        has_labels = model.task == "classify" and all(each.parent.name in indices for each in paths)
        quantize = functools.partial(
            write,
            format_=format_,
            max_accuracy_drop=max_accuracy_drop,
            images=[read_image(each) for each in paths],
            labels=[indices[each.parent.name] for each in paths] if has_labels else None,
        )
        format_ = dataclasses.replace(format_, writer=quantize)
    verification = write_verified(model, path, format_, options=options, images=compared, tolerance=tolerance)
    session = open_session(path)
    header = session.header
    session.close()
    return Exported(
        path=path,
        num_bytes=sum(file.stat().st_size for file in format_.all_files(path)),
        header=header,
        verification=verification,
        seconds=time.perf_counter() - start,
        notes=(*notes, *model.notes, *header.notes),
    )


def _verification_images(
    loaded: Model, options: ExportOptions, images: list[Image.Image]
) -> tuple[ExportOptions, list[Image.Image], list[str]]:
    """Return the options with the input size of a file without ``dynamic``, the images of that size, and notes.

    The size is the first image's after preprocessing; images of other sizes are ignored.
    """
    notes = []
    if not images:
        notes.append(f"--images is not given: predictions are compared on {_SYNTHETIC_IMAGES} synthetic images")
    if isinstance(loaded.preprocess, CenterCropPreprocess) or options.dynamic:
        return options, images or synthetic_images(_SYNTHETIC_IMAGES), notes
    resized_size = loaded.preprocess.resized_size
    if images:
        size = resized_size((images[0].height, images[0].width))
        images = [image for image in images if resized_size((image.height, image.width)) == size]
    else:
        size = (loaded.preprocess.min_size,) * 2
        images = synthetic_images(_SYNTHETIC_IMAGES, size)
    notes.append(
        f"the file accepts only images of {size[0]} x {size[1]} after preprocessing; --dynamic accepts any size"
    )
    return dataclasses.replace(options, input_size=size), images, notes


def _sample_paths(sources: Sequence[str | Path], max_images: int) -> list[Path]:
    """Return at most ``max_images`` paths at regular intervals, because folders list one class after another."""
    paths = expand_images(sources)
    return paths[:: max(1, -(-len(paths) // max_images))]
