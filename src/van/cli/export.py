"""``van export CHECKPOINT --format FORMAT --out FILE``: export a network to another runtime, with verification."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from van import api
from van.cli.arguments import DISPLAY, INPUT, OUTPUT, Command, parse
from van.cli.verbs import VERBS
from van.settings import Positional


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
    options = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    exported = api.export(options.pop("checkpoint"), **{k: v for k, v in options.items() if k != "json"})
    for note in exported.notes:
        print(note, file=sys.stderr)
    if settings.json:
        print(json.dumps(exported.to_dict()))
        return 0
    header, verification = exported.header, exported.verification
    shape = " x ".join("any" if side is None else str(side) for side in next(iter(header.inputs.values())))
    size_mb = exported.num_bytes / 1e6
    print(f"{exported.path}: {header.format} ({header.opset}), {header.precision}, images {shape}, {size_mb:.1f} MB")
    print(
        f"compared with PyTorch on {verification.num_images} images: maximum absolute difference "
        f"{verification.max_abs_diff:.2g}, {verification.relative_diff:.2g} of the largest output; "
        f"{verification.agreement:.1%} equal predictions"
    )
    return 0
