"""The settings of the run that ``van train --resume`` continues."""

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from van.errors import DataError, UsageError
from van.recipes import recipe_name
from van.settings import build_settings


def load_stored_settings(settings_class: Any, arguments: Sequence[str]) -> Any:
    """With --resume, return the settings of the run in --out, so that no flag has to be repeated; else None.

    Raises:
        UsageError: the run is one of another recipe.
        DataError: its settings.json is damaged.
    """
    out = _find_out(arguments)
    if "--resume" not in arguments or out is None:
        return None
    path = out / "settings.json"
    if not path.exists():
        print(f"--resume: {out} holds no run yet; starting a new one", file=sys.stderr)
        return None
    try:
        recipe = dict(json.loads(path.read_text(encoding="utf-8"))["recipe"])
        expected = recipe_name(settings_class)
        if recipe.get("recipe") != expected:
            raise UsageError(
                f"--resume: {out} holds a run of another recipe: expected {expected}, got {recipe.get('recipe')}"
            )
        return build_settings(settings_class, {**recipe, "out": out, "resume": True})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}), so the run cannot be resumed; start a new run in another --out"
        ) from error


def _find_out(arguments: Sequence[str]) -> Path | None:
    """Return the value of --out before the other flags are parsed: they need the stored settings as defaults."""
    given = [value for flag, value in itertools.pairwise(arguments) if flag == "--out"]
    given += [argument.removeprefix("--out=") for argument in arguments if argument.startswith("--out=")]
    return Path(given[-1]) if given else None
