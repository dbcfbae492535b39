"""Maps of a trained network beat those of an untrained one, and random ones, by every metric.

The network is trained here from scratch in about fifteen seconds: on scenes of one digit, large digits first.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from explain.small_models import SMALL_VAN, dense
from van.backbones.van import VAN
from van.datasets.digits import LABELS
from van.datasets.scenes import Scene, generate_digit_scenes
from van.errors import ShapeError, UsageError
from van.explain.deletion import DeletionSettings
from van.explain.explainer import Explainer
from van.explain.faithfulness import (
    CONTROL,
    METRICS,
    EvaluationSample,
    Faithfulness,
    FaithfulnessSettings,
    evaluate_faithfulness,
    random_map,
    summarize,
)
from van.model import Model
from van.preprocess import CenterCropPreprocess
from van.visualization.heatmap import Heatmap

SIDE_PX = 96
PHASES = ((220, 48, (0.8, 0.98)), (90, 64, (0.6, 0.8)), (110, SIDE_PX, (0.35, 0.55)))
"""Steps, side of the image, and the fraction of it that the digit has: about equally many pixels in each phase."""
SETTINGS = FaithfulnessSettings(tolerance=0.0, deletion=DeletionSettings(steps=6))


def crop_around_digit(
    scene: Scene, side_px: int, fractions: tuple[float, float], random: np.random.Generator
) -> EvaluationSample:
    """Crop a random square in which the digit has such a fraction of the side, and resize it to ``side_px``."""
    (digit,) = scene.objects
    left, top, right, bottom = digit.box
    whole, longest = scene.image.width, max(right - left, bottom - top)
    side = min(whole, max(round(longest / random.uniform(*fractions)), longest + 2))
    x, y = (
        int(random.integers(max(0, last - side), min(first, whole - side) + 1))
        for first, last in ((left, right), (top, bottom))
    )
    image = scene.image.resize((side_px, side_px), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
    box = (np.array([[left, top, right, bottom]]) - [x, y, x, y]) * (side_px / side)
    return EvaluationSample(image=image, label=digit.label, boxes=box)


def network() -> VAN:
    model = VAN(dims=(12, 24, 48, 64), depths=(1, 1, 1, 1), num_classes=10)
    for name, scale in model.named_parameters():
        if ".layer_scale_" in name:  # at the default 0.01 the blocks need more steps to have an effect
            nn.init.constant_(scale, 0.3)
    return model.to(memory_format=torch.channels_last)


def explainer_of(model: nn.Module, side_px: int = SIDE_PX) -> Explainer:
    loaded = Model(
        model, name="van", options={}, task="classify", class_names=LABELS,
        preprocess=CenterCropPreprocess(image_size=side_px, crop_fraction=1.0),
    )  # fmt: skip
    return Explainer(loaded, device="cpu")


def train(seed: int) -> VAN:
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    scenes = list(generate_digit_scenes("train", count=2500, image_size=64, seed=seed, max_digits=1))
    model = network()
    steps = sum(count for count, _, _ in PHASES)
    optimizer = torch.optim.AdamW(model.parameters(), 6e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps, pct_start=0.2)
    for count, side_px, fractions in PHASES:
        preprocess = CenterCropPreprocess(image_size=side_px, crop_fraction=1.0)
        for _ in range(count):
            chosen = [
                crop_around_digit(scenes[place], side_px, fractions, random)
                for place in random.integers(len(scenes), size=32)
            ]
            images = torch.stack([preprocess(each.image) for each in chosen]).to(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(images), torch.tensor([each.label for each in chosen]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def validation_samples(count: int) -> list[EvaluationSample]:
    random = np.random.default_rng(0)
    return [
        crop_around_digit(s, SIDE_PX, PHASES[-1][2], random)
        for s in generate_digit_scenes("val", count=count, image_size=64, max_digits=1)
    ]


def test_maps_of_a_trained_network_beat_chance_and_an_untrained_network_by_every_metric():
    """Seeds 0, 1 and 2 lead by at least twice these margins, each of which is about three standard errors.

    An untrained network predicts 10 % for every class, so its curves are constant: for it, deletion and insertion are
    compared by the gap between them.
    """
    items = validation_samples(64)
    trained = evaluate_faithfulness(explainer_of(train(seed=0)), items, ["grad-cam"], layer="stage3", settings=SETTINGS)
    torch.manual_seed(1)
    untrained = evaluate_faithfulness(explainer_of(network()), items, ["grad-cam"], layer="stage3", settings=SETTINGS)
    actual, chance = means(trained, "grad-cam"), means(trained, CONTROL)
    for others in (chance, means(untrained, "grad-cam")):
        assert actual["pointing_game"] > others["pointing_game"] + 0.18
        assert actual["energy_pointing_game"] > others["energy_pointing_game"] + 0.08
        assert actual["insertion"] - actual["deletion"] > others["insertion"] - others["deletion"] + 0.11
    assert actual["deletion"] < chance["deletion"] - 0.04
    assert actual["insertion"] > chance["insertion"] + 0.06


def means(result: Faithfulness, method: str) -> dict[str, float]:
    assert set(result.scores[method]) == set(METRICS)
    assert {score.num_images for score in result.scores[method].values()} == {64}
    return {metric: score.mean for metric, score in result.scores[method].items()}


def evaluate(samples: Sequence[EvaluationSample], *, model: nn.Module | None = None, **others: Any) -> Faithfulness:
    torch.manual_seed(0)
    explainer = explainer_of(network() if model is None else model, side_px=64)
    options: dict[str, Any] = {"methods": ["grad-cam", "layer-cam"], "layer": "stage2", "settings": SETTINGS}
    return evaluate_faithfulness(explainer, samples, **{**options, **others})


def odd_samples(count: int = 3) -> list[EvaluationSample]:
    """Return images of odd sizes, of which the network's input is the center square."""
    random = np.random.default_rng(0)
    return [
        EvaluationSample(
            image=Image.fromarray(random.integers(0, 255, (61, 83 + place, 3)).astype(np.uint8)),
            label=place,
            boxes=np.array([[30.0, 10.0, 50.5, 40.0]]),
        )
        for place in range(count)
    ]


def test_all_methods_and_the_control_are_evaluated_on_the_same_images():
    progress: list[int] = []
    found = evaluate(odd_samples(), progress=progress.append)
    assert progress == [1, 2, 3]
    assert list(found.scores) == list(found.curves) == ["grad-cam", "layer-cam", CONTROL]
    assert set(found.layers.values()) == {"stage2"}
    assert found.skipped == 0
    for method, scores in found.scores.items():
        assert list(scores) == ["pointing_game", "energy_pointing_game", "deletion", "insertion"]
        for side in ("deletion", "insertion"):
            curve = found.curves[method][side]
            assert curve.shape == (SETTINGS.deletion.steps + 1,)
            assert scores[side].mean == pytest.approx(np.trapezoid(curve, dx=1 / SETTINGS.deletion.steps))
    assert (
        json.loads(json.dumps(found.to_dict(), allow_nan=False))["scores"]["random"]["energy_pointing_game"][
            "num_images"
        ]
        == 3
    )


def test_scores_are_reproducible_and_the_seed_changes_the_control_only():
    first, again = evaluate(odd_samples()), evaluate(odd_samples())
    assert first.scores == again.scores
    other = evaluate(odd_samples(), settings=dataclasses.replace(SETTINGS, seed=1))
    assert other.scores[CONTROL] != first.scores[CONTROL]
    assert other.scores["grad-cam"] == first.scores["grad-cam"]


def test_pointing_games_skip_images_without_boxes_in_the_crop():
    items = odd_samples()
    items[0] = dataclasses.replace(items[0], boxes=None)
    items[1] = dataclasses.replace(items[1], boxes=np.array([[0.0, 0.0, 5.0, 5.0]]))  # left of the center square
    counts = {name: score.num_images for name, score in evaluate(items).scores["grad-cam"].items()}
    assert counts == {"pointing_game": 1, "energy_pointing_game": 1, "deletion": 3, "insertion": 3}
    alone = evaluate(items[:1])
    assert set(alone.scores["grad-cam"]) == {"deletion", "insertion"}
    assert alone.to_dict()["scores"]["grad-cam"]["deletion"]["standard_error"] is None


def test_masks_count_like_boxes():
    (item,) = odd_samples(1)
    mask = item.target_region()
    assert mask is not None
    by_mask = dataclasses.replace(item, boxes=None, masks=mask[None])
    assert evaluate([by_mask]).scores == evaluate([item]).scores


def test_a_detector_is_evaluated_by_pointing_games_only():
    """With random weights it detects nothing; with raised scores it detects two of the three classes."""
    loaded = dense("detect", {"head": "retinanet", **SMALL_VAN}, tuple("abc"))
    untrained = Explainer(loaded, device="cpu")
    with pytest.raises(UsageError, match="no metric applies to 2 images"):
        evaluate_faithfulness(untrained, odd_samples(2), ["grad-cam"], settings=SETTINGS)
    last: Any = loaded.network.get_submodule("detector.head.classification_head.cls_logits")
    with torch.no_grad():
        last.bias.view(-1, 3)[:, :2] = 0.0  # of each anchor; the third class is never detected
    found = evaluate_faithfulness(Explainer(loaded, device="cpu"), odd_samples(3), ["grad-cam"], settings=SETTINGS)
    assert found.skipped == 1
    assert found.scores[CONTROL]["energy_pointing_game"].num_images == 2
    assert set(found.scores["grad-cam"]) == set(found.scores[CONTROL]) == {"pointing_game", "energy_pointing_game"}
    assert found.curves["grad-cam"] == {}
    without_boxes = dataclasses.replace(odd_samples(1)[0], boxes=None)
    with pytest.raises(UsageError, match="no metric applies to 1 images"):
        evaluate_faithfulness(Explainer(loaded, device="cpu"), [without_boxes], ["grad-cam"])


def test_the_control_is_random_at_the_same_resolution_and_extent():
    heat = Heatmap(
        values=np.ones((3, 5), np.float32), extent=(0.0, 0.0, 50.0, 30.0), crop_box=(0.0, 0.0, 50.0, 30.0),
        image_size=(30, 50), method="grad-cam", layer="stage3", label="one",
    )  # fmt: skip
    random = np.random.default_rng(0)
    first, second = random_map(heat, random), random_map(heat, random)
    assert (first.method, first.layer, first.extent) == (CONTROL, "stage3", heat.extent)
    assert first.values.shape == (3, 5)
    assert len(np.unique([*first.values.ravel(), *second.values.ravel()])) == 30


def test_a_mean_has_its_standard_error():
    """Of 1, 2, 3, 6: the mean is 3, the variance 14 / 3, and the error its root over 2."""
    assert summarize([1.0, 2.0, 3.0, 6.0]) == (3.0, pytest.approx(math.sqrt(14 / 3) / 2), 4)
    assert summarize([0.25]) == (0.25, None, 1)


@pytest.mark.parametrize("methods", [[], ["grad-cam", "grad-cam"], ["random"], ["no-cam"]])
def test_invalid_methods_are_rejected(methods):
    with pytest.raises(UsageError, match=r"methods.*1|'no-cam'"):
        evaluate(odd_samples(1), methods=methods)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"boxes": np.zeros((2, 3))}, r"boxes.*\(2, 3\)"),
        ({"boxes": np.array([[5.0, 5.0, 5.0, 9.0]])}, r"\(5\.0, 5\.0, 5\.0, 9\.0\)"),
        ({"masks": np.ones((1, 83, 61), bool)}, r"masks.*\(K, 61, 83\).*\(1, 83, 61\)"),
    ],
)
def test_boxes_and_masks_that_do_not_fit_their_image_are_rejected(change, expected):
    with pytest.raises(ShapeError, match=expected):
        evaluate([dataclasses.replace(odd_samples(1)[0], **change)])


def test_no_images_and_a_negative_tolerance_are_rejected():
    with pytest.raises(UsageError, match="no metric applies to 0 images"):
        evaluate([])
    with pytest.raises(UsageError, match=r"tolerance.*-1"):
        FaithfulnessSettings(tolerance=-1)
