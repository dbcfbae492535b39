"""``van explain --receptive-fields``: theoretical and effective receptive fields of each stage."""

import json
import sys

import torch
from torch import Tensor, nn

from van.checkpoint import atomic_path
from van.cli.explain.maps import model_title, models_and_images, print_notes
from van.cli.explain.settings import ExplainSettings
from van.device import resolve_device
from van.errors import UsageError
from van.explain.receptive_fields import measure_receptive_fields
from van.images import expand_images, read_image
from van.model import Model
from van.preprocess import CenterCropPreprocess
from van.visualization.receptive_field_charts import draw_receptive_field_sizes, draw_receptive_fields
from van.visualization.receptive_fields import ReceptiveField


def run_receptive_fields(settings: ExplainSettings) -> int:
    """Measure receptive fields, draw two charts, and print a line for each model and stage."""
    names, arguments = models_and_images(settings.model_and_images)
    images = _load_images(arguments, settings.image_size)
    device = resolve_device(settings.device)
    models = {
        model_title(name): _load_network(name, settings.image_size, random_init=settings.random_init).to(device)
        for name in names
    }
    if len(models) < len(names):
        raise UsageError(f"expected models with distinct names, got {', '.join(map(model_title, names))}")
    fields = measure_receptive_fields(models, image_size=settings.image_size, images=images, progress=_show_progress)
    weights = "random weights" if settings.random_init else "trained weights"
    inputs = "noise" if images is None else f"{len(images)} images"
    title = f"receptive fields of the center cell at {settings.image_size} px ({weights}, {inputs})"
    charts = {
        settings.out / "receptive_fields.png": draw_receptive_fields,
        settings.out / "receptive_field_sizes.png": draw_receptive_field_sizes,
    }
    for path, draw in charts.items():
        with atomic_path(path) as temporary:
            draw(fields, temporary, title=title)
    for field in fields:
        print(json.dumps(field.to_dict()) if settings.json else _format_line(field))
    print(", ".join(map(str, charts)), file=sys.stderr)
    return 0


def _load_images(arguments: list[str], image_size: int) -> Tensor | None:
    """Load the images, all preprocessed alike for all models; None for noise."""
    rule = CenterCropPreprocess(image_size=image_size)
    paths = expand_images(arguments)
    return torch.stack([rule(read_image(path)) for path in paths]) if paths else None


def _load_network(name: str, image_size: int, *, random_init: bool) -> nn.Module:
    """Load a network; or build one with random weights, its layer scales and norms as large as trained ones."""
    if not random_init:
        loaded = Model.load(name)
        print_notes(loaded.notes)
        return loaded.network.eval()
    from van.bench.networks import NETWORKS, build

    if name not in NETWORKS:
        raise UsageError(f"--random-init: expected one of {', '.join(NETWORKS)}, got {name!r}; or remove --random-init")
    return build(NETWORKS[name], image_size=image_size)


def _show_progress(step: str) -> None:
    if sys.stderr.isatty():
        print(step, file=sys.stderr, flush=True)


def _format_line(field: ReceptiveField) -> str:
    return f"{field.network:<16} {field.layer}: effective: {field.effective_size(0.9):.0f} px, {field.theoretical_text}"
