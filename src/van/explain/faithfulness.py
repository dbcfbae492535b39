"""Faithfulness of attribution methods over many images, with a random map as control.

For each method: deletion (lower is better) and insertion (higher is better) of classifiers, see
``van.explain.deletion``; the pointing game and its energy-based variant (higher is better), see
``van.explain.pointing``, where boxes or masks of the class are annotated. The control has random values at the
resolution of the first method's map: the score of a map that is independent of the image.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor, nn

from van.backbones.fusion import can_fuse, fuse
from van.errors import UsageError
from van.explain.deletion import DeletionSettings, deletion_and_insertion_curves, resize_to_input
from van.explain.explainer import Explainer
from van.explain.pointing import energy_pointing_game, pointing_game, rasterize_region
from van.visualization.heatmap import Heatmap

CONTROL = "random"
"""The name of the control among the methods."""
METRICS = {"deletion": "lower", "insertion": "higher", "pointing_game": "higher", "energy_pointing_game": "higher"}
"""The metrics, and whether a lower or a higher value is better."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaithfulnessSettings:
    """Settings of the evaluation."""

    deletion: DeletionSettings = DeletionSettings()
    tolerance: float = 0.03
    """Pointing game: maximum distance from the object, as a fraction of the image's longer side; in the paper 15 of
    about 500 pixels."""
    seed: int = 0
    """Seed of the control."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise UsageError(f"tolerance: expected a finite number, at least 0, got {self.tolerance!r}")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationSample:
    """An image and the class whose map is evaluated.

    Args:
        label: the class's index in the network's class names.
        boxes: (K, 4) left, top, right, bottom of the class's objects, in pixels of the image.
        masks: (K, H, W) bool of the class's objects; combined with boxes if both are given.
    """

    image: Image.Image
    label: int
    boxes: np.ndarray | None = None
    masks: np.ndarray | None = None

    def target_region(self) -> np.ndarray | None:
        """Return the pixels of the class, (H, W) bool; None without boxes and masks.

        Raises:
            ShapeError: see ``rasterize_region``.
        """
        if self.boxes is None and self.masks is None:
            return None
        return rasterize_region((self.image.height, self.image.width), boxes=self.boxes, masks=self.masks)


class Score(NamedTuple):
    """A metric over images; the standard error is None for a single image."""

    mean: float
    standard_error: float | None
    num_images: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Faithfulness:
    """The results of each method.

    Args:
        scores: by method, then by metric; a metric that no image allowed is absent.
        curves: by method, then for deletion and insertion: the mean score of the class (steps + 1,).
        layers: the layer of each method's maps.
        skipped: number of images without a detection of the class.
    """

    scores: Mapping[str, Mapping[str, Score]]
    curves: Mapping[str, Mapping[str, np.ndarray]]
    settings: FaithfulnessSettings
    layers: Mapping[str, str]
    skipped: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serializable values."""
        return {
            "layers": dict(self.layers),
            "settings": dataclasses.asdict(self.settings),
            "skipped": self.skipped,
            "scores": {
                method: {metric: score._asdict() for metric, score in scores.items()}
                for method, scores in self.scores.items()
            },
            "curves": {
                method: {name: curve.tolist() for name, curve in curves.items()}
                for method, curves in self.curves.items()
            },
        }


def evaluate_faithfulness(
    explainer: Explainer,
    samples: Iterable[EvaluationSample],
    methods: Sequence[str],
    *,
    layer: str | None = None,
    settings: FaithfulnessSettings | None = None,
    progress: Callable[[int], None] | None = None,
) -> Faithfulness:
    """Evaluate the maps of several methods, and the control, on the same images.

    Detectors are evaluated by the pointing games only, with the map of the best detection of the class; images without
    one are skipped.

    Args:
        explainer: computes the maps.
        samples: images and classes, read one at a time.
        methods: some of ``van.explain.cam.METHODS``.
        layer: see ``find_layer``.
        progress: called after each image with the number of images done.

    Raises:
        ShapeError: boxes or masks do not fit their image.
        UsageError: there are no samples or no methods, a method is repeated or unknown, or no metric applies: the
            network is no classifier and no sample has boxes or masks.
    """
    settings = settings or FaithfulnessSettings()
    _check_methods(methods)
    values: dict[str, dict[str, list[float]]] = {method: {} for method in (*methods, CONTROL)}
    curves: dict[str, dict[str, list[np.ndarray]]] = {method: {} for method in values}
    random = np.random.default_rng(settings.seed)
    done, skipped, layers = 0, 0, {}
    network = fuse(explainer.model) if can_fuse(explainer.model) else explainer.model
    for sample in samples:
        region = sample.target_region()
        maps = _compute_maps(explainer, sample, methods, layer, random)
        for method, heatmap in maps.items():
            _add_pointing(values[method], heatmap, region, settings)
            if explainer.task.name == "classify":
                image = explainer.preprocess(sample.image)
                _add_deletion(values[method], curves[method], network, image, heatmap, sample.label, settings)
        skipped += not maps
        layers |= {method: heatmap.layer for method, heatmap in maps.items()}
        done += 1
        if progress is not None:
            progress(done)
    if not any(values[CONTROL].values()):
        raise UsageError(
            f"no metric applies to {done} images; expected a classifier, or boxes or masks of classes that it detects"
        )
    means = {m: {name: np.mean(each, axis=0) for name, each in of_method.items()} for m, of_method in curves.items()}
    return Faithfulness(
        scores={m: {name: summarize(each) for name, each in of_method.items()} for m, of_method in values.items()},
        curves=means,
        settings=settings,
        layers=layers,
        skipped=skipped,
    )


def _check_methods(methods: Sequence[str]) -> None:
    if not methods or len(set(methods)) != len(methods) or CONTROL in methods:
        raise UsageError(f"methods: expected at least 1, distinct, without {CONTROL!r}, got {list(methods)}")


def summarize(values: Sequence[float]) -> Score:
    """Return the mean of at least one number and its standard error."""
    count = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else None
    return Score(float(np.mean(values)), error, count)


def random_map(like: Heatmap, random: np.random.Generator) -> Heatmap:
    """Return a map with uniform random values at the resolution of another, and so as smooth on the image."""
    values = random.random(like.values.shape, dtype=np.float32)
    return dataclasses.replace(like, values=values, method=CONTROL)


def _compute_maps(
    explainer: Explainer,
    sample: EvaluationSample,
    methods: Sequence[str],
    layer: str | None,
    random: np.random.Generator,
) -> dict[str, Heatmap]:
    """Return a map of each method and the control; none if the network does not detect the class."""
    maps: dict[str, Heatmap] = {}
    for method in methods:
        explanation = explainer(sample.image, classes=[sample.label], method=method, layer=layer)
        if not explanation.maps:
            return {}
        maps[method] = explanation.maps[0]
    maps[CONTROL] = random_map(maps[methods[0]], random)
    return maps


def _add_pointing(
    values: dict[str, list[float]], heatmap: Heatmap, region: np.ndarray | None, settings: FaithfulnessSettings
) -> None:
    """Add the pointing games of a map, if part of the class's region was in the network's input."""
    if region is None:
        return
    attribution = heatmap.to_image_size()
    if (region & ~np.isnan(attribution)).any():
        hit = pointing_game(attribution, region, tolerance_px=settings.tolerance * max(region.shape))
        values.setdefault("pointing_game", []).append(hit)
        values.setdefault("energy_pointing_game", []).append(energy_pointing_game(attribution, region))


def _add_deletion(
    values: dict[str, list[float]],
    curves: dict[str, list[np.ndarray]],
    network: nn.Module,
    image: Tensor,
    heatmap: Heatmap,
    label: int,
    settings: FaithfulnessSettings,
) -> None:
    """Add the deletion and insertion curves of a map and the areas under them."""
    attribution = resize_to_input(heatmap, (image.shape[1], image.shape[2]))
    results = deletion_and_insertion_curves(network, image, attribution, label, settings.deletion)
    for name, curve, area in zip(("deletion", "insertion"), results, results.areas, strict=True):
        values.setdefault(name, []).append(area)
        curves.setdefault(name, []).append(curve)
