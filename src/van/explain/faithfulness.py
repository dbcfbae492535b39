"""How faithful maps are, in numbers over many pictures, with a random map beside them as control.

For each method: deletion (lower is better) and insertion (higher is better), see ``van.explain.deletion``, of networks
that classify; the pointing game and the share of mass (both higher is better), see ``van.explain.pointing``, where
boxes or masks of the class are given. The control has random cells, as many as the first method's map and between them
as smooth: what a map is worth that knows nothing of the picture.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor, nn

from van.errors import UsageError
from van.explain.deletion import DeletionSettings, deletion_and_insertion, on_input
from van.explain.explainer import Explainer
from van.explain.pointing import energy_share, pointing_game, region_of
from van.models.deploy import can_fuse, fuse
from van.results.heat import HeatMap

CONTROL = "random"
"""The name of the control among the methods."""
MEASURES = {"deletion": "lower", "insertion": "higher", "pointing": "higher", "energy": "higher"}
"""What is measured, and which way is better."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaithfulnessSettings:
    """How maps are scored."""

    deletion: DeletionSettings = DeletionSettings()
    tolerance: float = 0.03
    """Pointing game: how far from the thing still counts, as a share of the picture's longer side; in the paper 15
    pixels of some 500."""
    seed: int = 0
    """Draws the control."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise UsageError(f"tolerance is {self.tolerance!r}; wanted a number, at least 0")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """A picture, and the class whose map is scored.

    Args:
        label: the class's place in the network's label list.
        boxes: (K, 4) left, top, right, bottom of the class's things, in pixels of the picture.
        masks: (K, rows, columns) bool of the class's things; with boxes, both together.
    """

    picture: Image.Image
    label: int
    boxes: np.ndarray | None = None
    masks: np.ndarray | None = None

    def region(self) -> np.ndarray | None:
        """(rows, columns) bool: where the class is; None where nothing says so.

        Raises:
            ShapeError: see ``region_of``.
        """
        if self.boxes is None and self.masks is None:
            return None
        return region_of((self.picture.height, self.picture.width), boxes=self.boxes, masks=self.masks)


class Score(NamedTuple):
    """A measure over pictures; the standard error is None where there are fewer than two."""

    mean: float
    standard_error: float | None
    pictures: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Faithfulness:
    """The scores of each method.

    Args:
        scores: by method, then by measure; a measure that no picture allowed is absent.
        curves: by method, then for deletion and insertion: the mean probability (steps + 1,).
        layers: of which each method's map is.
        passed_over: pictures that no method gave a map for.
    """

    scores: Mapping[str, Mapping[str, Score]]
    curves: Mapping[str, Mapping[str, np.ndarray]]
    settings: FaithfulnessSettings
    layers: Mapping[str, str]
    passed_over: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "layers": dict(self.layers),
            "settings": dataclasses.asdict(self.settings),
            "passed_over": self.passed_over,
            "scores": {
                method: {measure: score._asdict() for measure, score in found.items()}
                for method, found in self.scores.items()
            },
            "curves": {
                method: {name: curve.tolist() for name, curve in found.items()} for method, found in self.curves.items()
            },
        }


def score_maps(
    explainer: Explainer,
    items: Iterable[Wanted],
    methods: Sequence[str],
    *,
    layer: str | None = None,
    settings: FaithfulnessSettings | None = None,
    progress: Callable[[int], None] | None = None,
) -> Faithfulness:
    """Score the maps of several methods, and the control, on the same pictures.

    Detectors are scored by pointing alone, by the map of the surest thing of the class; pictures in which they find
    none are passed over.

    Args:
        explainer: makes the maps.
        items: pictures and classes, read one at a time.
        methods: some of ``van.explain.cam.METHODS``.
        layer: see ``find_layer``.
        progress: told after each picture how many are done.

    Raises:
        ShapeError: boxes or masks do not fit their picture.
        UsageError: there are no items or no methods, a method is there twice or unknown, or nothing can be scored:
            the network does not classify and no item says where its class is.
    """
    settings = settings or FaithfulnessSettings()
    _check_methods(methods)
    values: dict[str, dict[str, list[float]]] = {method: {} for method in (*methods, CONTROL)}
    curves: dict[str, dict[str, list[np.ndarray]]] = {method: {} for method in values}
    random = np.random.default_rng(settings.seed)
    done, passed_over, layers = 0, 0, {}
    network = fuse(explainer.model) if can_fuse(explainer.model) else explainer.model
    for item in items:
        region = item.region()
        maps = _maps(explainer, item, methods, layer, random)
        for method, heat in maps.items():
            _point(values[method], heat, region, settings)
            if explainer.task.name == "classify":
                seen = explainer.preprocess(item.picture)
                _delete(values[method], curves[method], network, seen, heat, item.label, settings)
        passed_over += not maps
        layers |= {method: heat.layer for method, heat in maps.items()}
        done += 1
        if progress is not None:
            progress(done)
    if not any(values[CONTROL].values()):
        wanted = "a network that classifies, or boxes or masks of classes that it finds"
        raise UsageError(f"nothing can be scored in {done} pictures; wanted {wanted}")
    means = {m: {name: np.mean(each, axis=0) for name, each in found.items()} for m, found in curves.items()}
    return Faithfulness(
        scores={method: {name: summarise(each) for name, each in found.items()} for method, found in values.items()},
        curves=means,
        settings=settings,
        layers=layers,
        passed_over=passed_over,
    )


def _check_methods(methods: Sequence[str]) -> None:
    if not methods or len(set(methods)) != len(methods) or CONTROL in methods:
        raise UsageError(f"methods are {list(methods)}; wanted at least one, each once, and not {CONTROL!r}")


def summarise(values: Sequence[float]) -> Score:
    """The mean of at least one number, with the standard error that it has as a mean of independent ones."""
    count = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else None
    return Score(float(np.mean(values)), error, count)


def random_map(like: HeatMap, random: np.random.Generator) -> HeatMap:
    """A map with cells drawn evenly from 0 to 1, at the places of another's, and so as smooth between them."""
    cells = random.random(like.cells.shape, dtype=np.float32)
    return dataclasses.replace(like, cells=cells, method=CONTROL)


def _maps(
    explainer: Explainer, item: Wanted, methods: Sequence[str], layer: str | None, random: np.random.Generator
) -> dict[str, HeatMap]:
    """A map by each method and the control; none where the network finds nothing of the class."""
    maps: dict[str, HeatMap] = {}
    for method in methods:
        explanation = explainer(item.picture, classes=[item.label], method=method, layer=layer)
        if not explanation.maps:
            return {}
        maps[method] = explanation.maps[0]
    maps[CONTROL] = random_map(maps[methods[0]], random)
    return maps


def _point(
    values: dict[str, list[float]], heat: HeatMap, region: np.ndarray | None, settings: FaithfulnessSettings
) -> None:
    """Add what the map points at, where some of the class's region was seen."""
    if region is None:
        return
    on_picture = heat.on_picture()
    if (region & ~np.isnan(on_picture)).any():
        hit = pointing_game(on_picture, region, tolerance_px=settings.tolerance * max(region.shape))
        values.setdefault("pointing", []).append(hit)
        values.setdefault("energy", []).append(energy_share(on_picture, region))


def _delete(
    values: dict[str, list[float]],
    curves: dict[str, list[np.ndarray]],
    network: nn.Module,
    seen: Tensor,
    heat: HeatMap,
    label: int,
    settings: FaithfulnessSettings,
) -> None:
    """Add the curves of the map and the areas under them."""
    importance = on_input(heat, (seen.shape[1], seen.shape[2]))
    found = deletion_and_insertion(network, seen, importance, label, settings.deletion)
    for name, curve, area in zip(("deletion", "insertion"), found, found.areas, strict=True):
        values.setdefault(name, []).append(area)
        curves.setdefault(name, []).append(curve)
