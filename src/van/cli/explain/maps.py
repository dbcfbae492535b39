"""Class activation maps of ``van explain``: a drawing per image, a grid of images, and a comparison of models."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from van.checkpoint import atomic_path
from van.cli.explain.settings import ExplainSettings
from van.cli.predict import output_stem
from van.errors import ImageError, UsageError
from van.explain.explainer import Explainer, Explanation
from van.images import SUFFIXES, expand_images
from van.model import Model
from van.visualization.drawing import upscale_small_image
from van.visualization.heatmap import Heatmap
from van.visualization.image_grid import concat_horizontally, image_table

_TILE_PX = 480
_MAX_ROWS = 24
"""Images in one grid; more would be too high to view."""


class Column(NamedTuple):
    """A column of the grid; ``label`` is empty where each image has its own predicted class, of the given rank."""

    method: str
    layer: str
    label: str
    rank: int

    @property
    def title(self) -> str:
        """The header of the column."""
        subject = self.label or f"prediction {self.rank}"
        repeated = f" {self.rank}" if self.label and self.rank > 1 else ""
        return f"{subject}{repeated}: {self.method}, {self.layer}"


def draw_maps(settings: ExplainSettings) -> int:
    """Explain each image; write a drawing and the map as numbers for each, and a grid of all."""
    source, *images = settings.model_and_images
    paths = expand_images(images)
    explainer = Explainer(Model.load(source), device=settings.device)
    print_notes(explainer.notes)
    names: dict[str, Path] = {}
    rows: dict[Path, tuple[Image.Image, dict[Column, Image.Image]]] = {}
    failed = 0
    for path, result in zip(paths, _explain_files(explainer, paths, settings), strict=True):
        if isinstance(result, ImageError):
            failed += 1
            report_unreadable(result, as_json=settings.json)
            continue
        image, explanation = result
        files = _write_maps(settings.out, output_stem(path, names), image, explanation)
        if len(rows) < _MAX_ROWS:
            rows[path] = (_draw_input(image), _draw_columns(image, explanation, by_class=bool(settings.classes)))
        _print(explanation, files, as_json=settings.json)
    if len(rows) > 1:
        _write_grid(settings.out / "sheet.png", _row_titles(list(rows)), list(rows.values()))
        print(f"{settings.out / 'sheet.png'}: {len(rows)} of {len(paths)} images", file=sys.stderr)
    return exit_status(failed, len(paths))


def compare_models(settings: ExplainSettings) -> int:
    """Write a grid with a row for each image and a column for each model, each with its own prediction."""
    models, images = models_and_images(settings.model_and_images)
    if not models or not images:
        raise UsageError(f"--compare: expected models and images, got {len(models)} models and {len(images)} images")
    paths = expand_images(images)
    rows: dict[Path, list[Image.Image | None]] = {}
    failed: dict[Path, ImageError] = {}
    for model in models:
        explainer = Explainer(Model.load(model), device=settings.device)
        print_notes(explainer.notes)
        for path, result in zip(paths, _explain_files(explainer, paths, settings), strict=True):
            if isinstance(result, ImageError):
                failed[path] = result
                continue
            rows.setdefault(path, [_draw_input(result[0])]).append(_draw_tile(*result))
            _print(result[1], [], as_json=settings.json, model=model)
    for error in failed.values():
        report_unreadable(error, as_json=settings.json)
    shown = {path: row for path, row in list(rows.items())[:_MAX_ROWS] if path not in failed}
    if shown:
        titles = ["input", *map(model_title, models)]
        table = image_table(titles, list(shown.values()), row_titles=_row_titles(list(shown)))
        with atomic_path(settings.out / "compare.png") as temporary:
            table.save(temporary, format="png")
        print(f"{settings.out / 'compare.png'}: {len(shown)} of {len(paths)} images", file=sys.stderr)
    return exit_status(len(failed), len(paths))


def models_and_images(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments into models and images; images are files with an image suffix, folders and patterns."""
    images = [
        argument
        for argument in arguments
        if Path(argument).suffix.lower() in SUFFIXES or Path(argument).is_dir() or re.search(r"[*?\[]", argument)
    ]
    return [argument for argument in arguments if argument not in images], images


def _explain_files(
    explainer: Explainer, paths: Sequence[Path], settings: ExplainSettings
) -> Iterator[tuple[Image.Image, Explanation] | ImageError]:
    """Yield image and explanation of each file, in order, or the error of an unreadable one; show progress."""
    results = explainer.stream(
        paths,
        batch_size=settings.batch_size,
        methods=settings.method or (None,),
        classes=settings.classes or None,
        top=settings.top,
        box=settings.box,
        layer=settings.layer,
    )
    for done, result in enumerate(results, start=1):
        yield result
        if sys.stderr.isatty() and len(paths) > 1:
            print(f"\r{done}/{len(paths)}", end="\n" if done == len(paths) else "", file=sys.stderr, flush=True)


def _write_maps(out: Path, stem: str, image: Image.Image, explanation: Explanation) -> list[str]:
    """Write the drawing, and each map as numbers; return the files."""
    drawing = out / f"{stem}.png"
    with atomic_path(drawing) as temporary:
        explanation.draw(image).save(temporary, format="png")
    files = [drawing]
    for index, heatmap in enumerate(explanation.maps, start=1):
        suffix = f"-{index}-{_to_file_name(heatmap.label)}" if len(explanation.maps) > 1 else ""
        files.append(out / f"{stem}{suffix}.npy")
        with atomic_path(files[-1]) as temporary, temporary.open("wb") as file:
            np.save(file, heatmap.to_image_size())
    return [str(file) for file in files]


def _row_titles(paths: Sequence[Path]) -> list[str]:
    """Return file names, with their folder where two files have the same name."""
    counts = Counter(path.name for path in paths)
    return [path.name if counts[path.name] == 1 else f"{path.parent.name}/{path.name}" for path in paths]


def _write_grid(
    path: Path, row_titles: Sequence[str], rows: Sequence[tuple[Image.Image, Mapping[Column, Image.Image]]]
) -> None:
    """Write a table with a row for each image and a column for each class, method and layer."""
    columns = list(dict.fromkeys(column for _, tiles in rows for column in tiles))
    cells = [[original, *(tiles.get(column) for column in columns)] for original, tiles in rows]
    table = image_table(["input", *(column.title for column in columns)], cells, row_titles=row_titles)
    with atomic_path(path) as temporary:
        table.save(temporary, format="png")


def _draw_columns(image: Image.Image, explanation: Explanation, *, by_class: bool) -> dict[Column, Image.Image]:
    """Return a tile for each map, by its column; ``by_class`` if the classes are the same for all images."""
    small = _shrink(image)
    tiles: dict[Column, Image.Image] = {}
    counts: Counter[tuple[str, str, str]] = Counter()
    for heatmap in explanation.maps:
        key = (heatmap.method, heatmap.layer, heatmap.label if by_class else "")
        counts[key] += 1
        tiles[Column(*key, counts[key])] = heatmap.resized(_TILE_PX).draw(small)
    return tiles


def _print(explanation: Explanation, files: Sequence[str], *, as_json: bool, model: str = "") -> None:
    plain = explanation.to_dict()
    if as_json:
        print(json.dumps({**({"model": model} if model else {}), **plain, "files": list(files)}), flush=True)
        return
    text = "; ".join(_summarize(heatmap) for heatmap in explanation.maps) or "no detections"
    print(f"{model + ': ' if model else ''}{explanation.name}: {text}", flush=True)


def _summarize(heatmap: Heatmap) -> str:
    score = "" if heatmap.score is None else f" {heatmap.score:.1%}"
    if heatmap.is_constant:
        return f"{heatmap.label}{score}, constant map ({heatmap.method}, {heatmap.layer})"
    row, column = heatmap.peak()
    return f"{heatmap.label}{score}, maximum at x={column}, y={row} ({heatmap.method}, {heatmap.layer})"


def report_unreadable(error: ImageError, *, as_json: bool) -> None:
    """Print the error of an image that is skipped."""
    print(f"van: {error}", file=sys.stderr)
    if as_json:
        print(json.dumps({"image": error.name, "error": error.reason}), flush=True)


def print_notes(notes: Sequence[str]) -> None:
    """Print the notes of a loaded model."""
    for note in notes:
        print(note, file=sys.stderr)


def exit_status(failed: int, images: int) -> int:
    """Return the exit status, and report the number of unreadable images."""
    if failed:
        print(f"{failed} of {images} images could not be read", file=sys.stderr)
    return 1 if failed else 0


def _draw_tile(image: Image.Image, explanation: Explanation) -> Image.Image:
    """Return a small drawing of all maps, or the image if there are none."""
    if not explanation.maps:
        return _shrink(image)
    small = _shrink(image)
    return concat_horizontally([heatmap.resized(_TILE_PX).draw(small) for heatmap in explanation.maps])


def _shrink(image: Image.Image) -> Image.Image:
    factor = min(1.0, _TILE_PX / max(image.size))
    return image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))


def _draw_input(image: Image.Image) -> Image.Image:
    """Return the image alone, at the size that it has under a map."""
    small = _shrink(image)
    return Image.fromarray(upscale_small_image(small, (small.height, small.width))[0])


def model_title(model: str) -> str:
    """Return a short name of a model: its name, the folder of a run, or the file's stem."""
    path = Path(model)
    if not path.is_file():
        return model
    return path.resolve().parent.name if path.stem in ("best", "last") else path.stem


def _to_file_name(label: str) -> str:
    """Return a label as part of a file name."""
    return re.sub(r"[^\w.-]+", "_", label).strip("._")[:40] or "class"
