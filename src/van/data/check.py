"""Looks for everything that is wrong in a data set, before a network learns from it: ``van data check``.

A set is read as each kind of marks that it offers; then every picture is opened, and held against what is said of it.
Shapes: sizes (rows, columns).
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from van.data.look import Look, Said, look
from van.data.marks import Marked, Problem, Problems
from van.data.offers import PARTS, Offer, find_offers
from van.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What an offer holds.

    Args:
        pictures: how many are listed.
        marks: boxes, masks, segments; for maps the classes seen in each picture, added up.
        bare: pictures without any.
        per_class: marks of each label, also of those without any.
        smallest, largest: sizes by their pixels, of the pictures that can be read.
    """

    part: str
    kind: str
    pictures: int
    marks: int
    bare: int
    per_class: dict[str, int]
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, sizes by name."""
        sizes = {
            name: None if size is None else {"width": size[1], "height": size[0]}
            for name, size in (("smallest", self.smallest), ("largest", self.largest))
        }
        return dataclasses.asdict(self) | sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What was found in ``root``, and everything that is wrong there."""

    root: Path
    offers: tuple[Offer, ...]
    counts: tuple[Counts, ...]
    problems: tuple[Problem, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "data": str(self.root),
            "clean": not self.problems,
            "parts": [counts.to_dict() for counts in self.counts],
            "problems": [problem._asdict() for problem in self.problems],
        }


class _Task(NamedTuple):
    """A picture file of a part, and everything that is said of it, each with the place of its offer."""

    part: str
    path: Path
    places: list[int]
    said: list[Said]


def check(root: Path, *, on_picture: Callable[[int, int], None] | None = None) -> Report:
    """Read the whole of ``root`` and open every picture.

    Args:
        root: the data set, in any layout that can be trained on.
        on_picture: told how many pictures are done, and of how many.

    Raises:
        DataError: there is no such folder, or nothing in it that could be a data set.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder of a data set")
    problems = Problems(collect=True)
    offers = find_offers(root, problems)
    tasks: dict[tuple[str, Path], _Task] = {}
    for place, offer in enumerate(offers):
        for picture in offer.marked.pictures:
            task = tasks.setdefault((offer.part, picture.path), _Task(offer.part, picture.path, [], []))
            task.places.append(place)
            task.said.append(Said(offer, picture))
    seen = _look_at_all(list(tasks.values()), on_picture)
    for task, found in seen:
        problems.found += [*found.problems, *_listed_twice(task)]
    problems.found += _in_both_parts(seen)
    return Report(
        root=root,
        offers=tuple(offers),
        counts=tuple(_count(place, offer, seen) for place, offer in enumerate(offers)),
        problems=tuple(dict.fromkeys(problems.found)),  # kinds of one file share most of what is wrong with it
    )


def _look_at_all(tasks: Sequence[_Task], on_picture: Callable[[int, int], None] | None) -> list[tuple[_Task, Look]]:
    seen: list[tuple[_Task, Look]] = []
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    try:
        for task, found in zip(tasks, pool.map(lambda task: look(task.path, task.said), tasks), strict=True):
            seen.append((task, found))
            if on_picture is not None:
                on_picture(len(seen), len(tasks))
    finally:  # also where somebody has seen enough
        pool.shutdown(cancel_futures=True)
    return seen


def quick_check(marked: Marked, *, want: str, first: int = 8) -> None:
    """What can be seen in a moment, before training.

    Args:
        marked: the set.
        want: one of ``KINDS``.
        first: so many pictures are opened, and held against what is said of them.

    Raises:
        DataError: a file is missing, one of the first pictures is damaged or does not fit, or nothing is marked.
    """
    if not marked.pictures:
        raise DataError("the data set holds no pictures; van data check says what is wrong with it")
    files = [file for picture in marked.pictures for file in (picture.path, picture.map_path) if file is not None]
    missing = [file for file in files if not file.is_file()]
    if missing:
        others = f", and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise DataError(f"{missing[0]} is missing{others}; van data check lists all that is wrong in a data set")
    is_marked = any(
        picture.segments if want == "panoptic" else any(want != "masks" or mark.outline for mark in picture.marks)
        for picture in marked.pictures
    )
    for picture in marked.pictures[:first]:
        found = look(picture.path, [Said(Offer("", want, marked), picture)])
        if found.problems:
            raise DataError(f"{found.problems[0]}; van data check lists everything that is wrong in a data set")
        is_marked |= want == "map" and bool(found.shown[0])
    if not is_marked:
        looked = f"the first {min(first, len(marked.pictures))} maps" if want == "map" else "any picture"
        raise DataError(f"nothing is marked in {looked}; look at the data set with van data check --sheet")


def _listed_twice(task: _Task) -> list[Problem]:
    numbers: dict[int, list[int]] = {}
    for place, said in zip(task.places, task.said, strict=True):
        numbers.setdefault(place, []).append(said.picture.number)
    return [
        Problem(str(task.path), f"pictures {', '.join(map(str, same))}", "is listed more than once")
        for same in numbers.values()
        if len(same) > 1
    ]


def _in_both_parts(seen: Sequence[tuple[_Task, Look]]) -> list[Problem]:
    """Pictures to measure on that are among those to learn from."""
    learnt = {found.digest: task.path for task, found in reversed(seen) if task.part == PARTS[0] and found.digest}
    return [
        Problem(str(task.path), "", f"is the same file as {learnt[found.digest]}, which is learnt from; remove one")
        for task, found in seen
        if task.part == PARTS[1] and found.digest in learnt
    ]


def _count(place: int, offer: Offer, seen: Sequence[tuple[_Task, Look]]) -> Counts:
    total: Counter[int] = Counter()
    bare = 0
    sizes: list[tuple[int, int]] = []
    for task, found in seen:
        for own, labels in zip(task.places, found.shown, strict=True):
            if own == place:
                total.update(labels)
                bare += not labels
                sizes += [] if found.size is None else [found.size]
    sizes.sort(key=lambda size: size[0] * size[1])
    return Counts(
        part=offer.part,
        kind=offer.kind,
        pictures=len(offer.marked.pictures),
        marks=total.total(),
        bare=bare,
        per_class={name: total[label] for label, name in enumerate(offer.marked.labels)},
        smallest=sizes[0] if sizes else None,
        largest=sizes[-1] if sizes else None,
    )
