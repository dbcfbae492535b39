"""``van explain ... --lka``: LKA attention maps as a grid beside each image."""

import json
from pathlib import Path

import torch

from van.checkpoint import atomic_path
from van.cli.explain.maps import exit_status, print_notes, report_unreadable
from van.cli.explain.settings import ExplainSettings
from van.cli.predict import output_stem
from van.device import resolve_device, to_channels_last
from van.errors import ImageError, UsageError
from van.explain.lka_attention import Channels, lka_block_names, lka_channel_maps
from van.images import expand_images, read_image
from van.model import Model
from van.preprocess import CenterCropPreprocess
from van.visualization.attention_grids import AttentionMaps, draw_attention_grid, group_by_stage


def draw_lka_attention(settings: ExplainSettings) -> int:
    """Write one grid for each image; return status 1 if an image could not be read."""
    source, *images = settings.model_and_images
    paths = expand_images(images)
    loaded = Model.load(source)
    print_notes(loaded.notes)
    model = to_channels_last(loaded.network.eval(), resolve_device(settings.device))
    blocks = _select_blocks(lka_block_names(model), settings)
    channels = _parse_channels(settings.channels)
    names: dict[str, Path] = {}
    failed = 0
    for path in paths:
        try:
            image = read_image(path)
        except ImageError as error:
            failed += 1
            report_unreadable(error, as_json=settings.json)
            continue
        rule = loaded.preprocess
        input_image = rule.crop(image) if isinstance(rule, CenterCropPreprocess) else rule.resize(image)
        weight = next(model.parameters())
        x = rule(image).to(weight.device, weight.dtype)
        batch = x[None] if loaded.task == "classify" else [x]
        with torch.no_grad():
            groups = lka_channel_maps(model, batch, channels=channels, blocks=blocks)[0]
        target = settings.out / f"{output_stem(path, names)}-lka.png"
        title = f"LKA attention of {loaded.name}, {path.name}: the factors that multiply each block's features"
        sheet = draw_attention_grid(input_image, group_by_stage(groups) if channels == "mean" else groups, title=title)
        with atomic_path(target) as temporary:
            sheet.save(temporary, format="png")
        _print(path, groups, target, as_json=settings.json)
    return exit_status(failed, len(paths))


def _select_blocks(available: list[str], settings: ExplainSettings) -> list[str] | None:
    """Return the given blocks; by default all (None) for means, the last one of each stage for single channels."""
    if settings.lka:
        return list(settings.lka)
    if settings.channels == ("mean",):
        return None
    return list({name.partition(".")[0]: name for name in available}.values())


def _parse_channels(values: tuple[str, ...]) -> Channels:
    if values == ("mean",):
        return "mean"
    if values in ((), ("strongest",)):
        return "strongest"
    if not all(value.isdecimal() for value in values):
        raise UsageError(f"--channels: expected mean, strongest, or channel indices from 0, got {' '.join(values)}")
    return [int(value) for value in values]


def _print(path: Path, groups: list[AttentionMaps], target: Path, *, as_json: bool) -> None:
    if as_json:
        blocks = [
            {"block": group.name, "maps": dict(zip(group.captions, group.maps.tolist(), strict=True))}
            for group in groups
        ]
        print(json.dumps({"image": str(path), "file": str(target), "lka": blocks}), flush=True)
        return
    text = ", ".join(f"{group.name} max {max(group.scales):.3g}" for group in groups)
    print(f"{path}: {text}; {target}", flush=True)
