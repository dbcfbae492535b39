"""Validation of the options of a request, whether they come as query parameters, form fields or JSON keys."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from van.serving.api_error import ApiError
from van.serving.messages import ModelCard

MAX_TOP, MAX_EXPLAINED_CLASSES = 1000, 16
_KINDS = ("cam", "lka")

_Parser = Callable[[str, Any], Any]


def parse_predict_options(options: Mapping[str, Any], card: ModelCard) -> dict[str, Any]:
    """Validate the options of ``/predict``: ``top`` and ``min_score``.

    Raises:
        ApiError: 422, an option is unknown or invalid.
    """
    parsed = _parse(options, {"top": _parse_top, "min_score": _parse_score})
    if "min_score" in parsed and card.min_score is None:
        raise _invalid("min_score", f"no value for {card.name}, whose task is {card.task}", options["min_score"])
    if parsed.get("min_score", 1.0) < (card.min_score or 0.0):
        raise _invalid("min_score", f"{card.min_score} to 1", options["min_score"])
    return parsed


def parse_explain_options(options: Mapping[str, Any], card: ModelCard) -> tuple[Literal["cam", "lka"], dict[str, Any]]:
    """Validate the options of ``/explain``; returns the kind of explanation and its options.

    Raises:
        ApiError: 422, an option is unknown or invalid, or the model does not support that explanation.
    """
    options = dict(options)
    kind = options.pop("kind", "cam")
    if kind not in _KINDS:
        raise _invalid("kind", " or ".join(_KINDS), kind)
    if kind == "lka":
        if not card.blocks:
            message = f"{card.name} has no large kernel attention blocks; kind=lka needs a model with some"
            raise ApiError(422, "explanation_not_supported", message)
        return "lka", _parse(options, {"channels": _choice("mean", "strongest"), "blocks": _block_names(card.blocks)})
    if not card.methods:
        message = f"{card.name} has no class activation maps: it is an exported file, or see its notes in /models"
        raise ApiError(422, "explanation_not_supported", message)
    parsers: dict[str, _Parser] = {
        "top": _parse_explained_top,
        "classes": _classes(card),
        "method": _choice(*card.methods),
        "layer": _parse_name,
    }
    return "cam", _parse(options, parsers)


def _parse(options: Mapping[str, Any], parsers: Mapping[str, _Parser]) -> dict[str, Any]:
    for name in options:
        if name not in parsers:
            known = ", ".join(("model", *parsers))
            raise ApiError(422, "unknown_parameter", f"unknown parameter {name[:60]!r}; expected one of {known}")
    return {name: parsers[name](name, value) for name, value in options.items()}


def _invalid(name: str, expected: str, value: object) -> ApiError:
    return ApiError(422, "invalid_parameter", f"{name}: expected {expected}, got {str(value)[:60]!r}")


def _parse_top(name: str, value: Any) -> int:
    return _parse_count(name, value, MAX_TOP)


def _parse_explained_top(name: str, value: Any) -> int:
    return _parse_count(name, value, MAX_EXPLAINED_CLASSES)


def _parse_count(name: str, value: Any, most: int) -> int:
    text = str(value)
    is_plain = isinstance(value, str | int) and not isinstance(value, bool) and text.isascii() and text.isdecimal()
    # the length is checked first, as int() of a very long string takes long
    if not is_plain or len(text) > 6 or not 1 <= int(text) <= most:
        raise _invalid(name, f"an integer from 1 to {most}", value)
    return int(text)


def _parse_score(name: str, value: Any) -> float:
    try:
        score = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        score = math.nan
    if not 0 <= score <= 1:
        raise _invalid(name, "0 to 1", value)
    return score


def _parse_name(name: str, value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 200:
        raise _invalid(name, "one name of 1 to 200 characters", value)
    return value


def _choice(*choices: str) -> _Parser:
    def parse(name: str, value: Any) -> str:
        if value not in choices:
            raise _invalid(name, f"one of {', '.join(choices)}", value)
        return value

    return parse


def _block_names(blocks: tuple[str, ...]) -> _Parser:
    stages = {block.partition(".")[0] for block in blocks}

    def parse(name: str, value: Any) -> list[str]:
        values = value if isinstance(value, list) else [value]
        for block in values:
            if block not in blocks and block not in stages:
                raise _invalid(
                    name, f"some of {', '.join(blocks)}, or a stage such as {blocks[0].split('.')[0]}", block
                )
        return values

    return parse


def _classes(card: ModelCard) -> _Parser:
    count = len(card.class_names)

    def parse(name: str, value: Any) -> list[str | int]:
        values = value if isinstance(value, list) else [value]
        if not 1 <= len(values) <= MAX_EXPLAINED_CLASSES:
            raise _invalid(name, f"1 to {MAX_EXPLAINED_CLASSES} classes", f"{len(values)} classes")
        parsed: list[str | int] = []
        for entry in values:
            if isinstance(entry, str) and entry in card.class_names:  # first, as a class may be called "3"
                parsed.append(entry)
                continue
            text = str(entry)
            index = int(text) if text.isascii() and text.isdecimal() and len(text) < 7 else -1
            if isinstance(entry, bool) or not 0 <= index < count:
                raise _invalid(name, f"class names of {card.name} or class indices from 0 to {count - 1}", entry)
            parsed.append(index)
        return parsed

    return parse
