"""What ``van explain`` does with pictures: maps over them, and models side by side."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from van.checkpoint import atomic_path
from van.cli.answers import name_for
from van.cli.explain.settings import ExplainSettings
from van.errors import PictureError, UsageError
from van.explain.explainer import Explainer, Explanation
from van.pictures import SUFFIXES, expand_pictures
from van.results.drawing import enlarged
from van.results.heat import HeatMap
from van.results.sheets import beside, draw_contact_sheet, table

_TILE_PX = 480
_MOST_TILES, _MOST_ROWS = 48, 24
"""Pictures on one sheet."""


def draw_maps(settings: ExplainSettings) -> int:
    """Explain each picture; one drawing and one file of numbers for each, and a sheet of all."""
    source, *pictures = settings.words
    paths = expand_pictures(pictures)
    explainer = Explainer.load(source, device=settings.device)
    tell_notes(explainer.notes)
    names: dict[str, Path] = {}
    tiles: list[Image.Image] = []
    failed = 0
    for path, found in zip(paths, _explained(explainer, paths, settings), strict=True):
        if isinstance(found, PictureError):
            failed += 1
            tell_unreadable(found, as_json=settings.json)
            continue
        written = _write(settings.out, name_for(path, names), *found)
        if len(tiles) < _MOST_TILES:
            tiles.append(_tile(*found))
        _print(found[1], written, as_json=settings.json)
    if len(tiles) > 1:
        with atomic_path(settings.out / "sheet.png") as temporary:
            draw_contact_sheet(tiles, temporary)
        print(f"{settings.out / 'sheet.png'}: {len(tiles)} of {len(paths)} pictures", file=sys.stderr)
    return status_after(failed, len(paths))


def compare(settings: ExplainSettings) -> int:
    """One figure: a row for each picture, a column for each model, each with its own answer."""
    models, pictures = models_and_pictures(settings.words)
    if not models or not pictures:
        raise UsageError(f"--compare is given {len(models)} models and {len(pictures)} pictures; wanted both")
    paths = expand_pictures(pictures)
    rows: dict[Path, list[Image.Image]] = {}
    failed: dict[Path, PictureError] = {}
    for model in models:
        explainer = Explainer.load(model, device=settings.device)
        tell_notes(explainer.notes)
        for path, found in zip(paths, _explained(explainer, paths, settings), strict=True):
            if isinstance(found, PictureError):
                failed[path] = found
                continue
            rows.setdefault(path, [_as_drawn(found[0])]).append(_tile(*found))
            _print(found[1], [], as_json=settings.json, model=model)
    for error in failed.values():
        tell_unreadable(error, as_json=settings.json)
    shown = [row for path, row in rows.items() if path not in failed][:_MOST_ROWS]
    if shown:
        with atomic_path(settings.out / "compare.png") as temporary:
            table(["picture", *map(title_of, models)], shown).save(temporary, format="png")
        print(f"{settings.out / 'compare.png'}: {len(shown)} of {len(paths)} pictures", file=sys.stderr)
    return status_after(len(failed), len(paths))


def models_and_pictures(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which words name models and which pictures: files with a picture's ending, folders and patterns."""
    pictures = [w for w in words if Path(w).suffix.lower() in SUFFIXES or Path(w).is_dir() or re.search(r"[*?\[]", w)]
    return [word for word in words if word not in pictures], pictures


def _explained(
    explainer: Explainer, paths: Sequence[Path], settings: ExplainSettings
) -> Iterator[tuple[Image.Image, Explanation] | PictureError]:
    """Picture and explanation of each file, in order, or the error of one that cannot be read; shows progress."""
    found = explainer.stream(
        paths,
        batch_size=settings.batch_size,
        methods=settings.method or (None,),
        classes=settings.classes or None,
        top=settings.top,
        box=settings.box,
        layer=settings.layer,
    )
    for done, one in enumerate(found, start=1):
        yield one
        if sys.stderr.isatty() and len(paths) > 1:
            print(f"\r{done}/{len(paths)}", end="\n" if done == len(paths) else "", file=sys.stderr, flush=True)


def _write(out: Path, name: str, picture: Image.Image, found: Explanation) -> list[str]:
    """The drawing, and each map as numbers; returns the files."""
    drawing = out / f"{name}.png"
    with atomic_path(drawing) as temporary:
        found.draw(picture).save(temporary, format="png")
    files = [drawing]
    for number, heat in enumerate(found.maps, start=1):
        several = f"-{number}-{_plain(heat.label)}" if len(found.maps) > 1 else ""
        files.append(out / f"{name}{several}.npy")
        with atomic_path(files[-1]) as temporary, temporary.open("wb") as file:
            np.save(file, heat.on_picture())
    return [str(file) for file in files]


def _print(found: Explanation, files: Sequence[str], *, as_json: bool, model: str = "") -> None:
    plain = found.to_dict()
    if as_json:
        print(json.dumps({**({"model": model} if model else {}), **plain, "files": list(files)}), flush=True)
        return
    said = "; ".join(_said(heat) for heat in found.maps) or "nothing found"
    print(f"{model + ': ' if model else ''}{found.name}: {said}", flush=True)


def _said(heat: HeatMap) -> str:
    score = "" if heat.score is None else f" {heat.score:.1%}"
    if heat.is_flat:
        return f"{heat.label}{score}, the map is flat ({heat.method} of {heat.layer})"
    row, column = heat.peak()
    return f"{heat.label}{score}, most at {column},{row} ({heat.method} of {heat.layer})"


def tell_unreadable(error: PictureError, *, as_json: bool) -> None:
    """Name a picture that is passed over."""
    print(f"van: {error}", file=sys.stderr)
    if as_json:
        print(json.dumps({"picture": error.name, "error": error.reason}), flush=True)


def tell_notes(notes: Sequence[str]) -> None:
    """What was told while a network was loaded."""
    for note in notes:
        print(note, file=sys.stderr)


def status_after(failed: int, pictures: int) -> int:
    """The exit status, and a word on how many pictures could not be read."""
    if failed:
        print(f"{failed} of {pictures} pictures could not be read", file=sys.stderr)
    return 1 if failed else 0


def _tile(picture: Image.Image, found: Explanation) -> Image.Image:
    """A small drawing, whose letters are still read."""
    if not found.maps:
        return _small(picture)
    return beside([heat.on_smaller(_TILE_PX).draw(_small(picture)) for heat in found.maps])


def _small(picture: Image.Image) -> Image.Image:
    factor = min(1.0, _TILE_PX / max(picture.size))
    return picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))))


def _as_drawn(picture: Image.Image) -> Image.Image:
    """The picture alone, as large as under a map."""
    small = _small(picture)
    return Image.fromarray(enlarged(small, (small.height, small.width))[0])


def title_of(model: str) -> str:
    """What a column is called: a model's name, the folder of a run, or a file's name."""
    path = Path(model)
    if not path.is_file():
        return model
    return path.resolve().parent.name if path.stem in ("best", "last") else path.stem


def _plain(label: str) -> str:
    """A label as part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", label).strip("._")[:40] or "class"
