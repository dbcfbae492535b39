"""``van data digits | digit-scenes``: write the embedded sets out as files; ``van data check``: look at any set."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from van.cli.arguments import parse
from van.errors import UsageError

if TYPE_CHECKING:
    from van.data.check import Counts, Report


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
    most_digits: int = 6
    """Digits in a scene, at most; with 1 each shows exactly one, and classes/ holds them as class folders."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Flags of ``van data check``."""

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """The folder of a data set, in any layout that can be trained on."""
    sheet: Path | None = None
    """Draw up to 24 pictures with their marks into this PNG."""
    json: bool = False
    """Print JSON instead of tables."""


def run(arguments: Sequence[str]) -> int:
    """Choose the job and do it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        listed = "\n".join(f"  {name:<14}{text}" for name, (text, _) in JOBS.items())
        print(f"usage: van data JOB ...\n\n{listed}\n\nexamples:\n\n  van data digits --out digits")
        print("  van data check digits\n\nvan data JOB --help says more.")
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in JOBS:
        raise UsageError(f"there is no job {name!r}; known: {', '.join(JOBS)}; see van data --help")
    return JOBS[name][1](rest)


def _digits(arguments: Sequence[str]) -> int:
    settings = parse(
        DigitsSettings,
        arguments,
        verb="data digits",
        description=JOBS["digits"][0],
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
        description=JOBS["digit-scenes"][0],
        examples=(
            "van data digit-scenes --out scenes",
            "van data digit-scenes --out scenes --train 50 --val 10",
            "van data digit-scenes --out single --most-digits 1",
        ),
    )
    for flag in ("train", "val", "seed", "size_px", "most_digits"):
        least = {"seed": 0, "size_px": 32}.get(flag, 1)
        if getattr(settings, flag) < least:
            given = getattr(settings, flag)
            raise UsageError(f"--{flag.replace('_', '-')} is {given}; wanted at least {least}")
    from van.data.scene_files import write_digit_scenes

    things = write_digit_scenes(
        settings.out,
        train=settings.train,
        validation=settings.val,
        size_px=settings.size_px,
        seed=settings.seed,
        most_digits=settings.most_digits,
    )
    classes = ", and as class folders" if settings.most_digits == 1 else ""
    print(
        f"{settings.out}: {settings.train} scenes with {things['train']} digits to learn from, "
        f"{settings.val} with {things['val']} held out, in the layouts of COCO and ADE20K{classes}"
    )
    return 0


def _check(arguments: Sequence[str]) -> int:
    settings = parse(
        CheckSettings,
        arguments,
        verb="data check",
        description="Read a data set, open every picture, and name everything that is wrong; status 1 if anything is.",
        examples=("van data check scenes", "van data check coco --sheet coco.png", "van data check digits --json"),
    )
    if settings.sheet is not None and settings.sheet.suffix.lower() != ".png":
        raise UsageError(f"--sheet is {settings.sheet}; wanted a name ending in .png")
    from van.data.check import check

    report = check(settings.data, on_picture=_show_progress if sys.stderr.isatty() else None)
    if settings.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        _print_counts(report)
        for problem in report.problems:
            print(str(problem).replace("\n", "\\n"))
        print(f"{settings.data}: {f'problems: {len(report.problems):,}' if report.problems else 'nothing is wrong'}")
    if settings.sheet is not None:
        from van.checkpoint import atomic_path
        from van.data.contact_sheet import draw_offers

        with atomic_path(settings.sheet) as temporary:
            draw_offers(report.offers, temporary)
        print(f"contact sheet: {settings.sheet}", file=sys.stderr)
    return 1 if report.problems else 0


def _print_counts(report: "Report") -> None:
    """A column for each part and kind: first its sizes, then what it holds of each class."""
    heads = [f"{counts.part} {counts.kind}" for counts in report.counts]
    width = max((len(head) + 3 for head in heads), default=0)

    def line(name: str, values: Sequence[str]) -> None:
        print((f"{name[:23]:<24}" + "".join(f"{value:>{width}}" for value in values)).rstrip())

    line("", heads)
    line("pictures", [f"{counts.pictures:,}" for counts in report.counts])
    line("marks", ["" if counts.kind == "map" else f"{counts.marks:,}" for counts in report.counts])
    line("pictures without", [f"{counts.bare:,}" for counts in report.counts])
    line("smallest picture", [_size(counts.smallest) for counts in report.counts])
    line("largest picture", [_size(counts.largest) for counts in report.counts])
    print()
    maps = any(counts.kind == "map" for counts in report.counts)
    line("class", ["pictures" if counts.kind == "map" else "marks" for counts in report.counts] if maps else [])
    for label in dict.fromkeys(label for counts in report.counts for label in counts.per_class):
        line(label, [_marks_of(label, counts) for counts in report.counts])
    print()


def _marks_of(label: str, counts: "Counts") -> str:
    return f"{counts.per_class[label]:,}" if label in counts.per_class else ""


def _size(size: tuple[int, int] | None) -> str:
    return "" if size is None else f"{size[1]}x{size[0]}"


def _show_progress(done: int, total: int) -> None:
    if done == total or done % max(1, total // 200) == 0:
        print(f"\rpicture {done:,}/{total:,}", end="\n" if done == total else "", file=sys.stderr, flush=True)


JOBS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "digits": ("1,797 handwritten digits, 8 x 8 pixels, as train/CLASS/*.png and val/CLASS/*.png", _digits),
    "digit-scenes": ("scenes of those digits with boxes, masks and maps, as coco/ and ade/, made by seed", _scenes),
    "check": ("everything that is wrong in a data set, each with its file, and what the set holds", _check),
}
