"""What may be asked beside the pictures, checked: query, form field or JSON key alike."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from van.serve.questions import ModelCard
from van.serve.refusals import Refused

_MOST_TOP, _MOST_CLASSES = 1000, 16
_KINDS = ("maps", "lka")


def predict_options(given: Mapping[str, Any], card: ModelCard) -> dict[str, Any]:
    """Of ``/predict``: ``top`` and ``min_score``.

    Raises:
        Refused: one is unknown, or not what it should be.
    """
    options = _checked(given, {"top": _count, "min_score": _share})
    if "min_score" in options and card.least_score is None:
        raise _wrong("min_score", given["min_score"], f"none: {card.name} finds no things, its task is {card.task}")
    if options.get("min_score", 1.0) < (card.least_score or 0.0):
        raise _wrong("min_score", given["min_score"], f"{card.least_score} to 1")
    return options


def explain_options(given: Mapping[str, Any], card: ModelCard) -> tuple[str, dict[str, Any]]:
    """Of ``/explain``: ``explain`` or ``lka``, and what is asked of it.

    Raises:
        Refused: one is unknown, not what it should be, or the model cannot be asked so.
    """
    given = dict(given)
    kind = given.pop("kind", "maps")
    if kind not in _KINDS:
        raise _wrong("kind", kind, " or ".join(_KINDS))
    if kind == "lka":
        if not card.blocks:
            raise Refused(422, "cannot_explain", f"{card.name} holds no large kernel attention that can be looked at")
        return "lka", _checked(given, {"channels": _one_of("mean", "strongest"), "blocks": _words(card.blocks)})
    if not card.methods:
        raise Refused(
            422, "cannot_explain", f"{card.name} cannot be looked into: it is an exported file, or see its notes"
        )
    readers = {"top": _few, "classes": _classes(card), "method": _one_of(*card.methods), "layer": _word}
    return "explain", _checked(given, readers)


def _checked(given: Mapping[str, Any], readers: Mapping[str, Callable[[str, Any], Any]]) -> dict[str, Any]:
    for name in given:
        if name not in readers:
            raise Refused(
                422, "no_such_option", f"there is no option {name[:60]!r} here; known: model, {', '.join(readers)}"
            )
    return {name: readers[name](name, value) for name, value in given.items()}


def _wrong(name: str, value: object, wanted: str) -> Refused:
    return Refused(422, "wrong_option", f"{name} is {str(value)[:60]!r}; wanted {wanted}")


def _count(name: str, value: Any) -> int:
    return _whole(name, value, _MOST_TOP)


def _few(name: str, value: Any) -> int:
    return _whole(name, value, _MOST_CLASSES)


def _whole(name: str, value: Any, most: int) -> int:
    text = str(value)
    plain = isinstance(value, str | int) and not isinstance(value, bool) and text.isascii() and text.isdecimal()
    if not plain or len(text) > 6 or not 1 <= int(text) <= most:
        raise _wrong(name, value, f"a whole number, 1 to {most}")
    return int(text)


def _share(name: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= 1:
        raise _wrong(name, value, "0 to 1")
    return number


def _word(name: str, value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 200:
        raise _wrong(name, value, "one name")
    return value


def _one_of(*known: str) -> Callable[[str, Any], str]:
    def read(name: str, value: Any) -> str:
        if value not in known:
            raise _wrong(name, value, f"one of {', '.join(known)}")
        return value

    return read


def _words(known: tuple[str, ...]) -> Callable[[str, Any], list[str]]:
    stages = {block.partition(".")[0] for block in known}

    def read(name: str, value: Any) -> list[str]:
        wanted = value if isinstance(value, list) else [value]
        for word in wanted:
            if word not in known and word not in stages:
                raise _wrong(name, word, f"some of {', '.join(known)}, or a whole stage")
        return wanted

    return read


def _classes(card: ModelCard) -> Callable[[str, Any], list[str | int]]:
    def read(name: str, value: Any) -> list[str | int]:
        wanted = value if isinstance(value, list) else [value]
        if not 1 <= len(wanted) <= _MOST_CLASSES:
            raise _wrong(name, f"{len(wanted)} of them", f"1 to {_MOST_CLASSES}")
        found: list[str | int] = []
        for word in wanted:
            if isinstance(word, str) and word in card.labels:
                found.append(word)
                continue
            text = str(word)
            number = int(text) if text.isascii() and text.isdecimal() and len(text) < 7 else -1
            if isinstance(word, bool) or not 0 <= number < len(card.labels):
                raise _wrong(name, word, f"labels of {card.name}, or their numbers, 0 to {len(card.labels) - 1}")
            found.append(number)
        return found

    return read
