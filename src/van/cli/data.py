"""``van data digits | digit-scenes``: write the built-in datasets; ``van data check``: validate a dataset."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from van import api
from van.cli.arguments import DATA, DISPLAY, INPUT, OUTPUT, Command, Subcommands, parse, run_subcommand
from van.errors import UsageError
from van.settings import Positional


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsSettings:
    """Flags of ``van data digits``."""

    out: Path
    """New folder for the dataset."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesSettings:
    """Flags of ``van data digit-scenes``."""

    out: Path
    """New folder for the dataset."""
    train: int = 500
    """Number of training scenes."""
    val: int = 100
    """Number of validation scenes; they show digits that no training scene shows."""
    image_size: int = 128
    """Side of the square scenes, in pixels."""
    seed: int = 0
    """Random seed of the scenes."""
    max_digits: int = 6
    """Maximum number of digits per scene; with 1, each scene shows exactly one, and classes/ holds class folders."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Flags of ``van data check``."""

    data: Annotated[Path, Positional("PATH")]
    """Folder of the dataset, in any format that van train reads."""
    preview: Path | None = None
    """Write up to 24 images with their annotations to this PNG file."""
    json: bool = False
    """Print JSON instead of tables."""


DIGITS = Command(
    "data digits",
    DigitsSettings,
    summary="Write the 1,797 handwritten digits of scikit-learn, 8 x 8 pixels, as {train,val}/CLASS/*.png",
    examples=(
        "van data digits --out digits",
        "van data digits --out datasets/digits",
        "van data digits --out /tmp/digits",
    ),
    groups={OUTPUT: ("out",)},
)
DIGIT_SCENES = Command(
    "data digit-scenes",
    ScenesSettings,
    summary="Write generated scenes of digits with boxes, masks and semantic maps, in COCO and ADE20K formats",
    examples=(
        "van data digit-scenes --out scenes",
        "van data digit-scenes --out scenes --train 50 --val 10",
        "van data digit-scenes --out single --max-digits 1",
    ),
    groups={OUTPUT: ("out",), DATA: ("train", "val", "image_size", "max_digits", "seed")},
)
CHECK = Command(
    "data check",
    CheckSettings,
    summary="Validate a dataset: open every image, compare it with its annotations, and list all issues",
    details="Status 1 if there are issues.",
    examples=(
        "van data check scenes",
        "van data check coco --preview coco.png",
        "van data check digits --json",
    ),
    groups={INPUT: ("data",), OUTPUT: ("preview",), DISPLAY: ("json",)},
)


def run(arguments: Sequence[str]) -> int:
    """Run the sub-command that the first argument names."""
    return run_subcommand("data", SUBCOMMANDS, arguments)


def _digits(arguments: Sequence[str]) -> int:
    settings = parse(DIGITS, arguments)
    from van.datasets.digits import write_digits

    split = write_digits(settings.out)
    print(f"{settings.out}: {len(split.train)} training images, {len(split.validation)} validation images")
    return 0


def _scenes(arguments: Sequence[str]) -> int:
    settings = parse(DIGIT_SCENES, arguments)
    for flag, least in {"train": 1, "val": 1, "seed": 0, "image_size": 32, "max_digits": 1}.items():
        given = getattr(settings, flag)
        if given < least:
            raise UsageError(f"--{flag.replace('_', '-')}: expected at least {least}, got {given}")
    from van.datasets.scenes import write_digit_scenes

    values: dict[str, Any] = dataclasses.asdict(settings)
    digits = write_digit_scenes(values.pop("out"), validation=values.pop("val"), **values)
    classes = "; also as class folders" if settings.max_digits == 1 else ""
    print(
        f"{settings.out}: {settings.train} training scenes with {digits['train']} digits, {settings.val} validation "
        f"scenes with {digits['val']} digits, in COCO and ADE20K formats{classes}"
    )
    return 0


def _check(arguments: Sequence[str]) -> int:
    settings = parse(CHECK, arguments)
    report = api.check_dataset(settings.data, preview=settings.preview)
    print(json.dumps(report.to_dict(), indent=2) if settings.json else report)
    if settings.preview is not None:
        print(f"preview: {settings.preview}", file=sys.stderr)
    return 1 if report.issues else 0


SUBCOMMANDS: Subcommands = {
    "digits": (DIGITS, _digits),
    "digit-scenes": (DIGIT_SCENES, _scenes),
    "check": (CHECK, _check),
}
