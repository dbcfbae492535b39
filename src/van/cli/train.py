"""``van train RECIPE``: train a network and keep everything in a run folder."""

import dataclasses
import importlib
import itertools
import json
import os
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from van.cli.arguments import parse
from van.errors import DataError, UsageError
from van.recipes import RECIPES

_EXAMPLES = {
    "digits": ("van train digits --out runs/digits", "van train digits --out runs/digits --resume"),
    "finetune": (
        "van train finetune --data flowers --out runs/flowers",
        "van train finetune --data flowers --model van_b2 --from van_b2.pth --out runs/b2",
        "torchrun --nproc-per-node 2 -m van train finetune --data flowers --out runs/two",
    ),
    "imagenet1k": ("torchrun --nproc-per-node 8 -m van train imagenet1k --data imagenet --model van_b2 --out runs/b2",),
    "scenes-detect": ("van train scenes-detect --out runs/scenes-detect",),
    "scenes-instances": ("van train scenes-instances --out runs/scenes-instances",),
    "scenes-segment": ("van train scenes-segment --out runs/scenes-segment",),
    "scenes-panoptic": ("van train scenes-panoptic --out runs/scenes-panoptic",),
    "detect": (
        "van train detect --data apples --model van_b1 --out runs/apples",
        "van train detect --data apples --head d_fine --short-px 640 --long-px 640 --out runs/d-fine",
    ),
    "instances": ("van train instances --data apples --from runs/apples/best.safetensors --out runs/outlines",),
    "segment": ("van train segment --data streets --head upernet --model van_b2 --out runs/streets",),
    "panoptic": ("van train panoptic --data coco --out runs/panoptic",),
    "coco-retinanet": ("torchrun --nproc-per-node 8 -m van train coco-retinanet --data coco --out runs/retinanet",),
    "coco-mask-rcnn": (
        "torchrun --nproc-per-node 8 -m van train coco-mask-rcnn --data coco --length 3x --model van_b2 --out runs/3x",
    ),
    "ade20k-fpn": ("torchrun --nproc-per-node 8 -m van train ade20k-fpn --data ade20k --out runs/fpn",),
    "ade20k-upernet": ("torchrun --nproc-per-node 8 -m van train ade20k-upernet --data ade20k --out runs/upernet",),
}


def _epochs(text: str) -> tuple[int, ...]:
    """``8,11`` as numbers."""
    return tuple(int(number) for number in text.split(","))


_SELDOM: dict[str, Callable[[str], Any]] = {
    "milestones": _epochs,
    "cooldown_epochs": float,
    "random_erasing": float,
    "poly_power": float,
    "warmup_updates": int,
    "largest_class": float,
    "max_unreadable": float,
    "save_every": int,
    "log_every": int,
}
"""Settings without a flag of their own, for ``--set``."""
_WORDS: dict[Callable[[str], Any], str] = {
    int: "a whole number", float: "a number", _epochs: "whole numbers such as 8,11",
}  # fmt: skip


def run(arguments: Sequence[str]) -> int:
    """Choose the recipe, read its flags, run it, print how it ended."""
    if not arguments or arguments[0] in ("-h", "--help"):
        listed = "\n".join(f"  {name:<18}{recipe.text}" for name, recipe in RECIPES.items())
        print(f"usage: van train RECIPE --out FOLDER ...\n\n{listed}\n\nvan train RECIPE --help says more. Examples:\n")
        print("\n".join(f"  {examples[0]}" for examples in _EXAMPLES.values()))
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in RECIPES:
        raise UsageError(f"there is no recipe {name!r}; known: {', '.join(RECIPES)}; see van train --help")
    recipe = RECIPES[name]
    module = importlib.import_module(f"van.recipes.{recipe.module}")
    settings_class = getattr(module, recipe.settings)
    seldom = [setting for setting in _SELDOM if setting in _names_in(settings_class)]
    rest, changes = _take_changes(rest, seldom)
    settings = parse(
        settings_class,
        rest,
        verb=f"train {name}",
        description=f"{recipe.text}\n\nSeldom used, by --set NAME=VALUE: {', '.join(seldom)}.",
        examples=_EXAMPLES[name],
        default=_stored_settings(settings_class, rest),
    )
    settings = _changed(settings, changes)
    summary = module.run(settings)
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts, one speaks
        print_summary(settings.out, summary)
    return 0


def _names_in(settings_class: Any) -> set[str]:
    """The settings of a recipe and of its parts."""
    names: set[str] = set()
    for name, kind in get_type_hints(settings_class).items():
        names |= _names_in(kind) if dataclasses.is_dataclass(kind) else {name}
    return names


def _take_changes(arguments: Sequence[str], known: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Split ``--set NAME=VALUE`` off the other arguments."""
    rest: list[str] = []
    changes: dict[str, Any] = {}
    remaining = iter(arguments)
    for argument in remaining:
        if argument != "--set" and not argument.startswith("--set="):
            rest.append(argument)
            continue
        text = next(remaining, "") if argument == "--set" else argument.removeprefix("--set=")
        name, _, value = text.partition("=")
        name = name.replace("-", "_")
        if name not in known:
            raise UsageError(f"--set {name}: wanted NAME=VALUE with NAME one of {', '.join(known)}")
        try:
            changes[name] = _SELDOM[name](value)
        except ValueError as error:
            raise UsageError(f"--set {name}={value}: wanted {_WORDS[_SELDOM[name]]}") from error
    return rest, changes


def _changed(settings: Any, changes: dict[str, Any]) -> Any:
    """Settings with some of their own or their parts' fields replaced."""
    given: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            given[field.name] = _changed(value, changes)
        elif field.name in changes:
            given[field.name] = changes[field.name]
    return dataclasses.replace(settings, **given)


def _stored_settings(settings_class: Any, arguments: Sequence[str]) -> Any:
    """With --resume, the settings of the run in --out, so that no flag has to be repeated.

    Raises:
        UsageError: the run is one of another recipe.
        DataError: its settings are damaged.
    """
    out = _out_folder(arguments)
    if "--resume" not in arguments or out is None:
        return None
    path = out / "settings.json"
    if not path.exists():
        print(f"{out} holds no run yet: --resume starts one", file=sys.stderr)
        return None
    try:
        recipe = dict(json.loads(path.read_text(encoding="utf-8"))["recipe"])
        wanted = settings_class.__name__.removesuffix("Settings").lower()
        if recipe.get("recipe") != wanted:
            raise UsageError(f"{out} holds a run of {recipe.get('recipe')!r}, not of {wanted!r}")
        return _rebuilt(settings_class, {**recipe, "out": out, "resume": True})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); the run cannot go on, start another --out") from error


def _out_folder(arguments: Sequence[str]) -> Path | None:
    """What --out FOLDER or --out=FOLDER says, before any other flag is understood."""
    given = [value for flag, value in itertools.pairwise(arguments) if flag == "--out"]
    given += [argument.removeprefix("--out=") for argument in arguments if argument.startswith("--out=")]
    return Path(given[-1]) if given else None


def _rebuilt(settings_class: Any, values: dict[str, Any]) -> Any:
    """Undo ``recipes.classification.flat``."""
    hints = get_type_hints(settings_class)
    given = {}
    for field in dataclasses.fields(settings_class):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            given[field.name] = _rebuilt(kind, values)
        elif field.name in values:
            given[field.name] = _plain(kind, values[field.name])
    return settings_class(**given)


def _plain(kind: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    wants_path = kind is Path or (isinstance(kind, types.UnionType) and Path in kind.__args__)
    return Path(value) if wants_path and value is not None else value


def print_summary(out: Path, summary: Any) -> None:
    """One screen: how good, how long, what was passed over, where everything lies, what next."""
    from van.engine.fit import MOST_SHOWN

    minutes, seconds = divmod(round(summary.seconds), 60)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in list(summary.metrics.items())[:MOST_SHOWN])
    print(f"\nbest     {shown} (update {summary.best_update} of {summary.updates})")
    speed = f", {summary.pictures_per_s:.0f} pictures/s in training" if summary.pictures_per_s else ""
    print(f"time     {minutes} min {seconds} s{speed or '; nothing was left to train'}")
    if summary.unreadable:
        print(f"passed over {len(summary.unreadable)} unreadable pictures: {', '.join(list(summary.unreadable)[:5])}")
    print(f"curves   {out / 'curves.png'}")
    print(f"network  {out / 'best.safetensors'}")
    print(f"next     van predict {out / 'best.safetensors'} PICTURES")
