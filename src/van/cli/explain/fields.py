"""``van explain --fields``: how much of a picture a cell of each stage can read, and how much it does read."""

import json
import sys

import torch
from torch import Tensor, nn

from van.checkpoint import atomic_path
from van.cli.explain.maps import models_and_pictures, tell_notes, title_of
from van.cli.explain.settings import ExplainSettings
from van.errors import UsageError
from van.explain.receptive_fields import measure_fields
from van.models.load import load, usable_device
from van.pictures import expand_pictures, read_picture
from van.preprocess import Preprocess
from van.results.field_charts import draw_fields, draw_sides
from van.results.fields import ReceptiveField


def measure(settings: ExplainSettings) -> int:
    """Measure, draw two figures, print a line for each network and stage."""
    names, words = models_and_pictures(settings.words)
    pictures = _pictures(words, settings.size_px)
    device = usable_device(settings.device)
    models = {title_of(name): _network(name, settings.size_px, fresh=settings.fresh).to(device) for name in names}
    if len(models) < len(names):
        raise UsageError(f"two of the models are called alike: {', '.join(map(title_of, names))}; name each once")
    fields = measure_fields(models, size_px=settings.size_px, pictures=pictures, progress=_show)
    weights = "random weights" if settings.fresh else "trained weights"
    seen = "noise" if pictures is None else f"{len(pictures)} pictures"
    title = f"receptive fields of the middle cell at {settings.size_px} px ({weights}, {seen})"
    for draw, name in ((draw_fields, "fields.png"), (draw_sides, "sides.png")):
        with atomic_path(settings.out / name) as temporary:
            draw(fields, temporary, title=title)
    for field in fields:
        print(json.dumps(field.to_dict()) if settings.json else _line(field))
    print(f"{settings.out / 'fields.png'}, {settings.out / 'sides.png'}", file=sys.stderr)
    return 0


def _pictures(words: list[str], size_px: int) -> Tensor | None:
    """What all networks look at, by one rule; None for noise."""
    rule = Preprocess(size_px=size_px)
    paths = expand_pictures(words)
    return torch.stack([rule(read_picture(path)) for path in paths]) if paths else None


def _network(name: str, size_px: int, *, fresh: bool) -> nn.Module:
    """A loaded network; or one with random weights, whose layer scales and norms have the sizes of trained ones."""
    if not fresh:
        loaded = load(name)
        tell_notes(loaded.notes)
        return loaded.model.eval()
    from van.bench.networks import NETWORKS, build

    if name not in NETWORKS:
        raise UsageError(f"--fresh: there is no {name!r}; known: {', '.join(NETWORKS)}; or leave --fresh out")
    return build(NETWORKS[name], size_px=size_px)


def _show(step: str) -> None:
    if sys.stderr.isatty():
        print(step, file=sys.stderr, flush=True)


def _line(field: ReceptiveField) -> str:
    return f"{field.network:<16} {field.layer}: 90 % in {field.side(0.9):.0f} px, {field.readable}"
