"""``van data digits`` and ``van data digit-scenes``: write the embedded sets out as files."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from van.cli.arguments import parse
from van.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsSettings:
    """Flags of ``van data digits``."""

    out: Path
    """A new folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesSettings:
    """Flags of ``van data digit-scenes``."""

    out: Path
    """A new folder."""
    train: int = 500
    """Scenes to learn from."""
    val: int = 100
    """Scenes held out, which show held-out digits."""
    size_px: int = 128
    """Side of a scene, in pixels."""
    seed: int = 0
    """Another number gives other scenes."""


def run(arguments: Sequence[str]) -> int:
    """Choose the set and write it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        listed = "\n".join(f"  {name:<14}{text}" for name, (text, _) in SETS.items())
        print(f"usage: van data SET --out FOLDER\n\n{listed}\n\nExample:\n\n  van data digits --out digits")
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in SETS:
        raise UsageError(f"there is no set {name!r}; known: {', '.join(SETS)}; see van data --help")
    return SETS[name][1](rest)


def _digits(arguments: Sequence[str]) -> int:
    settings = parse(
        DigitsSettings,
        arguments,
        verb="data digits",
        description=SETS["digits"][0],
        examples=("van data digits --out digits",),
    )
    from van.data.digits import write_digits

    split = write_digits(settings.out)
    print(f"{settings.out}: {len(split.train)} pictures to learn from, {len(split.validation)} held out")
    return 0


def _scenes(arguments: Sequence[str]) -> int:
    settings = parse(
        ScenesSettings,
        arguments,
        verb="data digit-scenes",
        description=SETS["digit-scenes"][0],
        examples=("van data digit-scenes --out scenes", "van data digit-scenes --out scenes --train 50 --val 10"),
    )
    for flag in ("train", "val", "seed", "size_px"):
        least = {"seed": 0, "size_px": 32}.get(flag, 1)
        if getattr(settings, flag) < least:
            given = getattr(settings, flag)
            raise UsageError(f"--{flag.replace('_', '-')} is {given}; wanted at least {least}")
    from van.data.scene_files import write_digit_scenes

    things = write_digit_scenes(
        settings.out, train=settings.train, validation=settings.val, size_px=settings.size_px, seed=settings.seed
    )
    print(
        f"{settings.out}: {settings.train} scenes with {things['train']} digits to learn from, "
        f"{settings.val} with {things['val']} held out, in the layouts of COCO and ADE20K"
    )
    return 0


SETS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "digits": ("1,797 handwritten digits, 8 x 8 pixels, as train/CLASS/*.png and val/CLASS/*.png", _digits),
    "digit-scenes": ("scenes of those digits with boxes, masks and maps, as coco/ and ade/, made by seed", _scenes),
}
