"""``van export CHECKPOINT --format FORMAT --out FILE``: a network for another runtime, checked before it is kept."""

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from van.cli.arguments import parse
from van.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

    from van.export.formats import Format
    from van.export.verify import Verification
    from van.export.writing import ExportOptions
    from van.models.load import Loaded

_MADE = 4
_LOOKED_AT = 16
"""Pictures to compare answers on: made ones where none are given, and at most so many given ones."""
_CALIBRATION = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Flags of ``van export``."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint, a public weights file, or a model name such as van_b2."""
    out: Path
    """The file to write; OpenVINO's .bin comes beside its .xml."""
    format: Literal["onnx", "openvino", "torch-export", "aot-inductor"] = "onnx"
    """Names end in .onnx, .xml, .pt2 and .aoti.pt2."""
    half: bool = False
    """float16 weights and arithmetic; OpenVINO computes in bfloat16 where that is faster here, else in float32."""
    dynamic: bool = False
    """Any number of pictures at once and, for boxes and maps, of any size."""
    batch_size: int | None = None
    """Pictures at once in a file without --dynamic; 1 if not given."""
    size_px: int | None = None
    """Side of the square that a classifier sees, or shorter side of whole pictures; as trained if not given."""
    pictures: tuple[Path, ...] = ()
    """Files and folders: answers are compared on up to 16 of them; on made-up ones if not given."""
    tolerance: float | None = None
    """Largest difference from PyTorch, as a share of the largest output; 1e-4, with --half 2e-2 if not given."""
    int8: bool = False
    """OpenVINO: 8 bits in those layers where that is faster and loses no answers, with --calibrate."""
    calibrate: Path | None = None
    """For --int8: a folder of pictures of the kind that the network will see, in folders by class where there are."""
    max_loss: float = 0.005
    """For --int8: share of the pictures whose answer may get worse."""
    json: bool = False
    """Print one JSON object."""


def run(arguments: Sequence[str]) -> int:
    """Write, compare and keep; with status 1 nothing was left behind."""
    settings = parse(
        ExportSettings,
        arguments,
        verb="export",
        description="Write a network for another runtime, with its labels and its preprocessing inside. The file's "
        "answers are compared with PyTorch's first; if they differ by more than the tolerance nothing is written. "
        "van predict and van.Predictor read what was written.",
        examples=(
            "van export runs/digits/best.safetensors --out digits.onnx",
            "van export runs/flowers/best.safetensors --format openvino --out flowers.xml --pictures flowers/val",
            "van export runs/streets/best.safetensors --out streets.onnx --dynamic",
            "van export van_b2 --out van_b2.onnx --half --size-px 288 --json",
            "van export runs/flowers/best.safetensors --format openvino --out small.xml --int8 --calibrate flowers/val",
        ),
    )
    _check(settings)
    from van.export.formats import FORMATS
    from van.export.header import file_sha256
    from van.export.writing import ExportOptions, at_size, want_exportable
    from van.models.load import load

    started = time.perf_counter()
    loaded = load(settings.checkpoint)
    want_exportable(loaded, dynamic=settings.dynamic)
    source = Path(settings.checkpoint)
    options = ExportOptions(
        dynamic=settings.dynamic,
        half=settings.half,
        batch_size=settings.batch_size or 1,
        source=file_sha256(source) if source.is_file() else "",
    )
    loaded = at_size(loaded, settings.size_px)
    options, pictures = _pictures(settings, loaded, options)
    format_ = FORMATS[settings.format]
    found = _write(settings, loaded, format_, options, pictures)
    _print(settings, loaded, format_, found, time.perf_counter() - started)
    return 0


def _check(settings: ExportSettings) -> None:
    """Refuse what can be seen to be wrong before anything is loaded."""
    for name in ("size_px", "batch_size"):
        given = getattr(settings, name)
        if given is not None and given < 1:
            raise UsageError(f"--{name.replace('_', '-')} is {given}; wanted at least 1")
    if settings.tolerance is not None and not 0 < settings.tolerance <= 1:
        raise UsageError(f"--tolerance is {settings.tolerance}; wanted more than 0 and at most 1")
    if not 0 <= settings.max_loss < 1:
        raise UsageError(f"--max-loss is {settings.max_loss}; wanted 0 to 1")
    if settings.dynamic and settings.batch_size is not None:
        raise UsageError("--batch-size is for files without --dynamic, which takes any number; leave one out")
    if settings.int8 != (settings.calibrate is not None):
        raise UsageError("--int8 and --calibrate FOLDER belong together; give both or neither")
    if settings.int8 and settings.format != "openvino":
        raise UsageError(f"--int8 is for --format openvino; --format is {settings.format}")
    if settings.int8 and settings.half:
        raise UsageError("--int8 and --half exclude each other; choose one")
    wanted = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2", "aot-inductor": ".aoti.pt2"}
    if not settings.out.name.lower().endswith(wanted[settings.format]):
        raise UsageError(f"--out is {settings.out}; wanted a name ending in {wanted[settings.format]}")


def _pictures(
    settings: ExportSettings, loaded: "Loaded", options: "ExportOptions"
) -> tuple["ExportOptions", "list[Image.Image]"]:
    """What answers are compared on, and the options with the size that fixed whole pictures have: the first one's."""
    from van.export.verify import made_pictures
    from van.pictures import read_picture
    from van.preprocess import Preprocess

    given = settings.pictures or (() if settings.calibrate is None else (settings.calibrate,))
    pictures = [read_picture(path) for path in _some(given, _LOOKED_AT)]
    if isinstance(loaded.preprocess, Preprocess) or settings.dynamic:
        if not pictures:
            _say(f"no --pictures given: answers are compared on {_MADE} made-up ones")
        return options, pictures or made_pictures(_MADE)
    seen = loaded.preprocess.seen
    if pictures:
        rows, columns = seen((pictures[0].height, pictures[0].width))
        pictures = [one for one in pictures if seen((one.height, one.width)) == (rows, columns)]
    else:
        rows = columns = loaded.preprocess.short_px
        pictures = made_pictures(_MADE, (rows, columns))
        _say(f"no --pictures given: answers are compared on {_MADE} made-up ones")
    _say(f"the file takes pictures that are seen as {rows} x {columns} only; --dynamic frees rows and columns")
    return dataclasses.replace(options, seen=(rows, columns)), pictures


def _some(given: Sequence[Path], most: int) -> list[Path]:
    """At most so many pictures, from all over the folders, which list one class after the other."""
    from van.pictures import expand_pictures

    paths = expand_pictures([str(path) for path in given])
    step = max(1, -(-len(paths) // most))
    return paths[::step]


def _write(
    settings: ExportSettings,
    loaded: "Loaded",
    format_: "Format",
    options: "ExportOptions",
    pictures: "list[Image.Image]",
) -> "Verification":
    from van.export.verify import write_verified
    from van.pictures import read_picture

    if settings.calibrate is not None:
        from van.export.int8 import write

        paths = _some([settings.calibrate], _CALIBRATION)
        classes = {label: place for place, label in enumerate(loaded.labels)}
        known = loaded.task == "classify" and all(path.parent.name in classes for path in paths)
        quantise = functools.partial(
            write,
            format_=format_,
            max_loss=settings.max_loss,
            pictures=[read_picture(path) for path in paths],
            truths=[classes[path.parent.name] for path in paths] if known else None,
        )
        format_ = dataclasses.replace(format_, writer=quantise)
    return write_verified(
        loaded, settings.out, format_, options=options, pictures=pictures, tolerance=settings.tolerance
    )


def _print(
    settings: ExportSettings, loaded: "Loaded", format_: "Format", found: "Verification", seconds: float
) -> None:
    from van.export.formats import open_session

    session = open_session(settings.out)
    header = session.header
    session.close()
    size = sum(file.stat().st_size for file in format_.files(settings.out))
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
            "verification": found.to_dict(),
        }
        print(json.dumps(values))
        return
    for note in (*loaded.notes, *header.notes):
        _say(note)
    shape = " x ".join("any" if side is None else str(side) for side in next(iter(header.inputs.values())))
    print(
        f"{settings.out}: {header.format} ({header.opset}), {header.precision}, pictures {shape}, {size / 1e6:.1f} MB"
    )
    print(
        f"as PyTorch on {found.pictures} pictures: largest difference {found.max_difference:.2g}, "
        f"{found.relative:.2g} of the largest output; {found.agreement:.1%} of the answers agree"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr)
