"""``van explain ... --lka``: the attention that LKA itself computes, as strips of maps beside each picture."""

import json
from pathlib import Path

import torch
from PIL import Image

from van.checkpoint import atomic_path
from van.cli.answers import name_for
from van.cli.explain.maps import status_after, tell_notes, tell_unreadable
from van.cli.explain.settings import ExplainSettings
from van.errors import PictureError, UsageError
from van.explain.gates import Channels, gate_names, lka_maps
from van.models.load import in_channels_last, load, usable_device
from van.pictures import expand_pictures, read_picture
from van.preprocess import Preprocess
from van.results.strips import Strip, by_stage, draw_strips


def draw_gates(settings: ExplainSettings) -> int:
    """One sheet for each picture; status 1 if one could not be read."""
    source, *pictures = settings.words
    paths = expand_pictures(pictures)
    loaded = load(source)
    tell_notes(loaded.notes)
    model = in_channels_last(loaded.model.eval(), usable_device(settings.device))
    blocks = _blocks(gate_names(model), settings)
    channels = _channels(settings.channels)
    names: dict[str, Path] = {}
    failed = 0
    for path in paths:
        try:
            picture = read_picture(path)
        except PictureError as error:
            failed += 1
            tell_unreadable(error, as_json=settings.json)
            continue
        rule = loaded.preprocess
        seen = rule.crop(picture) if isinstance(rule, Preprocess) else rule.resize(picture)
        weight = next(model.parameters())
        x = rule(picture).to(weight.device, weight.dtype)
        given = x[None] if loaded.task == "classify" else [x]
        with torch.no_grad():
            strips = lka_maps(model, given, channels=channels, blocks=blocks)[0]
        target = settings.out / f"{name_for(path, names)}-lka.png"
        title = f"large kernel attention of {loaded.name}: what each block multiplies its features by"
        _save(draw_strips(seen, by_stage(strips) if channels == "mean" else strips, title=title), target)
        _print(path, strips, target, as_json=settings.json)
    return status_after(failed, len(paths))


def _blocks(known: list[str], settings: ExplainSettings) -> list[str] | None:
    """Those named; else every block for their means, and the last one of each stage for single channels."""
    if settings.lka:
        return list(settings.lka)
    if settings.channels == ("mean",):
        return None
    return list({name.partition(".")[0]: name for name in known}.values())


def _channels(words: tuple[str, ...]) -> Channels:
    if words == ("mean",):
        return "mean"
    if words in ((), ("strongest",)):
        return "strongest"
    if not all(word.isdecimal() for word in words):
        raise UsageError(f"--channels is {' '.join(words)}; wanted mean, strongest, or numbers of channels from 0")
    return [int(word) for word in words]


def _print(path: Path, strips: list[Strip], target: Path, *, as_json: bool) -> None:
    if as_json:
        blocks = [
            {"block": strip.name, "maps": dict(zip(strip.captions, strip.maps.tolist(), strict=True))}
            for strip in strips
        ]
        print(json.dumps({"picture": str(path), "file": str(target), "lka": blocks}), flush=True)
        return
    said = ", ".join(f"{strip.name} to {max(strip.scales):.3g}" for strip in strips)
    print(f"{path}: {said}; see {target}", flush=True)


def _save(sheet: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="png")
