"""``van export CHECKPOINT --format FORMAT --out FILE``: export a network to another runtime, with verification."""

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from van.cli.arguments import DISPLAY, INPUT, OUTPUT, Command, parse
from van.cli.verbs import VERBS
from van.errors import UsageError
from van.settings import Positional

if TYPE_CHECKING:
    from PIL import Image

    from van.export.formats import Format
    from van.export.verify import Verification
    from van.export.writing import ExportOptions
    from van.model import Model

_SYNTHETIC_IMAGES = 4
_MAX_IMAGES = 16
_MAX_CALIBRATION_IMAGES = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Flags of ``van export``."""

    checkpoint: Annotated[str, Positional("CHECKPOINT")]
    """A checkpoint, a public weights file, or a model name such as van_b2."""
    out: Path
    """The file to write; OpenVINO's .bin is written beside its .xml."""
    format: Literal["onnx", "openvino", "torch-export"] = "onnx"
    """File suffixes are .onnx, .xml and .pt2."""
    half: bool = False
    """float16 weights and arithmetic; OpenVINO computes in bfloat16 where that is faster here, else in float32."""
    dynamic: bool = False
    """Any batch size and, except for classification, any image size."""
    batch_size: int | None = None
    """Batch size of a file without --dynamic; 1 if not given."""
    image_size: int | None = None
    """Side of a classifier's center crop, or shorter side for other tasks, in pixels; as trained if not given."""
    images: tuple[Path, ...] = ()
    """Files and folders: predictions are compared on up to 16 of them; on synthetic images if not given."""
    tolerance: float | None = None
    """Maximum absolute difference from PyTorch, relative to the largest output; 1e-4, with --half 2e-2 if not given."""
    int8: bool = False
    """OpenVINO: quantize layers where int8 is faster and accurate enough; needs --calibration-data."""
    calibration_data: Path | None = None
    """For --int8: a folder of images of the kind that the network will process; labeled if in one folder per class."""
    max_accuracy_drop: float = 0.005
    """For --int8: fraction of the validation images whose prediction may get worse."""
    json: bool = False
    """Print one JSON object."""


COMMAND = Command(
    "export",
    ExportSettings,
    summary=VERBS["export"],
    details="The file holds class names and preprocessing, too. Its outputs are compared with PyTorch's first; if they "
    "differ by more than --tolerance, no file is written. van predict and van.Model.load read exported files.",
    examples=(
        "van export runs/digits/best.safetensors --out digits.onnx",
        "van export runs/flowers/best.safetensors --format openvino --out flowers.xml --images flowers/val",
        "van export runs/streets/best.safetensors --out streets.onnx --dynamic",
        "van export van_b2 --out van_b2.onnx --half --image-size 288 --json",
        "van export runs/flowers/best.safetensors --format openvino --out int8.xml --int8 "
        "--calibration-data flowers/val",
    ),
    groups={
        INPUT: ("checkpoint",),
        OUTPUT: ("out", "format", "half", "dynamic", "batch_size", "image_size"),
        "Verification": ("images", "tolerance"),
        "Quantization": ("int8", "calibration_data", "max_accuracy_drop"),
        DISPLAY: ("json",),
    },
)


def run(arguments: Sequence[str]) -> int:
    """Write and verify a file; return 0, or raise an error and leave no file behind."""
    settings = parse(COMMAND, arguments)
    _check(settings)
    from van.export.formats import FORMATS
    from van.export.header import file_sha256
    from van.export.writing import ExportOptions, check_exportable, with_image_size
    from van.model import Model

    start = time.perf_counter()
    loaded = Model.load(settings.checkpoint)
    check_exportable(loaded, dynamic=settings.dynamic)
    source = Path(settings.checkpoint)
    options = ExportOptions(
        dynamic=settings.dynamic,
        half=settings.half,
        batch_size=settings.batch_size or 1,
        source=file_sha256(source) if source.is_file() else "",
    )
    loaded = with_image_size(loaded, settings.image_size)
    options, images = _verification_images(settings, loaded, options)
    format_ = FORMATS[settings.format]
    verification = _write(settings, loaded, format_, options, images)
    _print_summary(settings, loaded, format_, verification, time.perf_counter() - start)
    return 0


def _check(settings: ExportSettings) -> None:
    """Check the flags before anything is loaded."""
    for name in ("image_size", "batch_size"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    if settings.tolerance is not None and not 0 < settings.tolerance <= 1:
        raise UsageError(f"--tolerance: expected more than 0 and at most 1, got {settings.tolerance}")
    if not 0 <= settings.max_accuracy_drop < 1:
        raise UsageError(f"--max-accuracy-drop: expected at least 0 and less than 1, got {settings.max_accuracy_drop}")
    if settings.dynamic and settings.batch_size is not None:
        raise UsageError("--batch-size and --dynamic exclude each other; --dynamic accepts any batch size")
    if settings.int8 != (settings.calibration_data is not None):
        raise UsageError("--int8 and --calibration-data FOLDER require each other; give both or neither")
    if settings.int8 and settings.format != "openvino":
        raise UsageError(f"--int8: expected --format openvino, got {settings.format}")
    if settings.int8 and settings.half:
        raise UsageError("--int8 and --half exclude each other; choose one")
    suffixes = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}
    if not settings.out.name.lower().endswith(suffixes[settings.format]):
        raise UsageError(f"--out: expected a name ending in {suffixes[settings.format]}, got {settings.out}")


def _verification_images(
    settings: ExportSettings, loaded: "Model", options: "ExportOptions"
) -> tuple["ExportOptions", "list[Image.Image]"]:
    """Return the images for the verification, and the options with the input size of a file without --dynamic.

    That size is the first image's after preprocessing; images of other sizes are ignored.
    """
    from van.export.verify import synthetic_images
    from van.images import read_image
    from van.preprocess import CenterCropPreprocess

    sources = settings.images or (() if settings.calibration_data is None else (settings.calibration_data,))
    images = [read_image(path) for path in _sample_paths(sources, _MAX_IMAGES)]
    if isinstance(loaded.preprocess, CenterCropPreprocess) or settings.dynamic:
        if not images:
            _log(f"--images is not given: predictions are compared on {_SYNTHETIC_IMAGES} synthetic images")
        return options, images or synthetic_images(_SYNTHETIC_IMAGES)
    resized_size = loaded.preprocess.resized_size
    if images:
        rows, columns = resized_size((images[0].height, images[0].width))
        images = [image for image in images if resized_size((image.height, image.width)) == (rows, columns)]
    else:
        rows = columns = loaded.preprocess.min_size
        images = synthetic_images(_SYNTHETIC_IMAGES, (rows, columns))
        _log(f"--images is not given: predictions are compared on {_SYNTHETIC_IMAGES} synthetic images")
    _log(f"the file accepts only images of {rows} x {columns} after preprocessing; --dynamic accepts any size")
    return dataclasses.replace(options, input_size=(rows, columns)), images


def _sample_paths(sources: Sequence[Path], max_images: int) -> list[Path]:
    """Return at most ``max_images`` paths at regular intervals, because folders list one class after another."""
    from van.images import expand_images

    paths = expand_images([str(path) for path in sources])
    step = max(1, -(-len(paths) // max_images))
    return paths[::step]


def _write(
    settings: ExportSettings,
    loaded: "Model",
    format_: "Format",
    options: "ExportOptions",
    images: "list[Image.Image]",
) -> "Verification":
    from van.export.verify import write_verified
    from van.images import read_image

    if settings.calibration_data is not None:
        from van.export.int8 import write

        paths = _sample_paths([settings.calibration_data], _MAX_CALIBRATION_IMAGES)
        indices = {name: index for index, name in enumerate(loaded.class_names)}
        has_labels = loaded.task == "classify" and all(path.parent.name in indices for path in paths)
        quantize = functools.partial(
            write,
            format_=format_,
            max_accuracy_drop=settings.max_accuracy_drop,
            images=[read_image(path) for path in paths],
            labels=[indices[path.parent.name] for path in paths] if has_labels else None,
        )
        format_ = dataclasses.replace(format_, writer=quantize)
    return write_verified(loaded, settings.out, format_, options=options, images=images, tolerance=settings.tolerance)


def _print_summary(
    settings: ExportSettings, loaded: "Model", format_: "Format", verification: "Verification", seconds: float
) -> None:
    from van.export.formats import open_session

    session = open_session(settings.out)
    header = session.header
    session.close()
    size = sum(file.stat().st_size for file in format_.all_files(settings.out))
    if settings.json:
        values: dict[str, Any] = {
            "out": str(settings.out),
            "format": header.format,
            "task": header.task,
            "model": header.model,
            "precision": header.precision,
            "dynamic": header.dynamic,
            "inputs": {name: list(shape) for name, shape in header.inputs.items()},
            "opset": header.opset,
            "bytes": size,
            "seconds": round(seconds, 2),
            "notes": list(header.notes),
            "verification": verification.to_dict(),
        }
        print(json.dumps(values))
        return
    for note in (*loaded.notes, *header.notes):
        _log(note)
    shape = " x ".join("any" if side is None else str(side) for side in next(iter(header.inputs.values())))
    print(f"{settings.out}: {header.format} ({header.opset}), {header.precision}, images {shape}, {size / 1e6:.1f} MB")
    print(
        f"compared with PyTorch on {verification.num_images} images: maximum absolute difference "
        f"{verification.max_abs_diff:.2g}, {verification.relative_diff:.2g} of the largest output; "
        f"{verification.agreement:.1%} equal predictions"
    )


def _log(text: str) -> None:
    print(text, file=sys.stderr)
