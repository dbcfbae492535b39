"""Maps of a network that has learnt beat those of one that has not, and random ones, by every measure.

The network is trained here, from nothing, in some fifteen seconds: on scenes of one digit, looked at closely first.
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

from explain.small import SMALL_VAN, dense
from van.data.digits import LABELS
from van.data.scenes import Scene, digit_scenes
from van.errors import ShapeError, UsageError
from van.explain.deletion import DeletionSettings
from van.explain.explainer import Explainer
from van.explain.faithfulness import (
    CONTROL,
    MEASURES,
    Faithfulness,
    FaithfulnessSettings,
    Wanted,
    random_map,
    score_maps,
    summarise,
)
from van.models.load import Loaded
from van.models.van import VAN
from van.preprocess import Preprocess
from van.results.heat import HeatMap

SIDE_PX = 96
PHASES = ((220, 48, (0.8, 0.98)), (90, 64, (0.6, 0.8)), (110, SIDE_PX, (0.35, 0.55)))
"""Steps, side of the picture, and how much of it the digit takes: about as many pixels in all of them."""
SETTINGS = FaithfulnessSettings(tolerance=0.0, deletion=DeletionSettings(steps=6))


def closer(scene: Scene, side_px: int, shares: tuple[float, float], random: np.random.Generator) -> Wanted:
    """A square of the scene in which the digit takes such a share of the side, somewhere, enlarged to ``side_px``."""
    (thing,) = scene.things
    left, top, right, bottom = thing.box
    whole, longest = scene.picture.width, max(right - left, bottom - top)
    side = min(whole, max(round(longest / random.uniform(*shares)), longest + 2))
    x, y = (
        int(random.integers(max(0, last - side), min(first, whole - side) + 1))
        for first, last in ((left, right), (top, bottom))
    )
    seen = scene.picture.resize((side_px, side_px), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
    box = (np.array([[left, top, right, bottom]]) - [x, y, x, y]) * (side_px / side)
    return Wanted(picture=seen, label=thing.label, boxes=box)


def network() -> VAN:
    model = VAN(dims=(12, 24, 48, 64), depths=(1, 1, 1, 1), num_classes=10)
    for name, scale in model.named_parameters():
        if ".layer_scale_" in name:  # at their usual 0.01 the blocks take longer than this test has to say anything
            nn.init.constant_(scale, 0.3)
    return model.to(memory_format=torch.channels_last)


def explainer_of(model: nn.Module, side_px: int = SIDE_PX) -> Explainer:
    loaded = Loaded(
        model=model, name="van", options={}, task="classify", labels=LABELS,
        preprocess=Preprocess(size_px=side_px, crop_fraction=1.0),
    )  # fmt: skip
    return Explainer(loaded, device="cpu")


def train(seed: int) -> VAN:
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    scenes = list(digit_scenes("train", count=2500, size_px=64, seed=seed, most_digits=1))
    model = network()
    steps = sum(count for count, _, _ in PHASES)
    optimiser = torch.optim.AdamW(model.parameters(), 6e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=steps, pct_start=0.2)
    for count, side_px, shares in PHASES:
        see = Preprocess(size_px=side_px, crop_fraction=1.0)
        for _ in range(count):
            chosen = [closer(scenes[place], side_px, shares, random) for place in random.integers(len(scenes), size=32)]
            pictures = torch.stack([see(each.picture) for each in chosen]).to(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(pictures), torch.tensor([each.label for each in chosen]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def held_out(count: int) -> list[Wanted]:
    random = np.random.default_rng(0)
    return [
        closer(s, SIDE_PX, PHASES[-1][2], random) for s in digit_scenes("val", count=count, size_px=64, most_digits=1)
    ]


def test_a_trained_networks_maps_beat_chance_and_an_untrained_networks_by_every_measure():
    """Seeds 0, 1 and 2 lead by twice these margins at the least, each of which is some three standard errors.

    An untrained network says 10 % of every class whatever it sees, so its curves tell nothing: deletion and insertion
    are then compared by the gap between them.
    """
    items = held_out(64)
    trained = score_maps(explainer_of(train(seed=0)), items, ["grad-cam"], layer="stage3", settings=SETTINGS)
    torch.manual_seed(1)
    untrained = score_maps(explainer_of(network()), items, ["grad-cam"], layer="stage3", settings=SETTINGS)
    ours, chance = means(trained, "grad-cam"), means(trained, CONTROL)
    for others in (chance, means(untrained, "grad-cam")):
        assert ours["pointing"] > others["pointing"] + 0.18
        assert ours["energy"] > others["energy"] + 0.08
        assert ours["insertion"] - ours["deletion"] > others["insertion"] - others["deletion"] + 0.11
    assert ours["deletion"] < chance["deletion"] - 0.04
    assert ours["insertion"] > chance["insertion"] + 0.06


def means(found: Faithfulness, method: str) -> dict[str, float]:
    assert set(found.scores[method]) == set(MEASURES)
    assert {score.pictures for score in found.scores[method].values()} == {64}
    return {measure: score.mean for measure, score in found.scores[method].items()}


def scored(items: Sequence[Wanted], *, model: nn.Module | None = None, **others: Any) -> Faithfulness:
    torch.manual_seed(0)
    explainer = explainer_of(network() if model is None else model, side_px=64)
    options: dict[str, Any] = {"methods": ["grad-cam", "layer-cam"], "layer": "stage2", "settings": SETTINGS}
    return score_maps(explainer, items, **{**options, **others})


def odd_items(count: int = 3) -> list[Wanted]:
    """Pictures of odd sizes, of which the network sees the middle square."""
    random = np.random.default_rng(0)
    return [
        Wanted(
            picture=Image.fromarray(random.integers(0, 255, (61, 83 + place, 3)).astype(np.uint8)),
            label=place,
            boxes=np.array([[30.0, 10.0, 50.5, 40.0]]),
        )
        for place in range(count)
    ]


def test_every_method_and_the_control_are_scored_on_the_same_pictures():
    told: list[int] = []
    found = scored(odd_items(), progress=told.append)
    assert told == [1, 2, 3]
    assert list(found.scores) == list(found.curves) == ["grad-cam", "layer-cam", CONTROL]
    assert set(found.layers.values()) == {"stage2"}
    assert found.passed_over == 0
    for method, scores in found.scores.items():
        assert list(scores) == ["pointing", "energy", "deletion", "insertion"]
        for side in ("deletion", "insertion"):
            curve = found.curves[method][side]
            assert curve.shape == (SETTINGS.deletion.steps + 1,)
            assert scores[side].mean == pytest.approx(np.trapezoid(curve, dx=1 / SETTINGS.deletion.steps))
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["scores"]["random"]["energy"]["pictures"] == 3


def test_scores_are_the_same_every_time_and_another_seed_draws_another_control():
    first, again = scored(odd_items()), scored(odd_items())
    assert first.scores == again.scores
    other = scored(odd_items(), settings=dataclasses.replace(SETTINGS, seed=1))
    assert other.scores[CONTROL] != first.scores[CONTROL]
    assert other.scores["grad-cam"] == first.scores["grad-cam"]


def test_pictures_without_boxes_and_boxes_that_were_not_seen_are_left_out_of_pointing():
    items = odd_items()
    items[0] = dataclasses.replace(items[0], boxes=None)
    items[1] = dataclasses.replace(items[1], boxes=np.array([[0.0, 0.0, 5.0, 5.0]]))  # left of the middle square
    counts = {name: score.pictures for name, score in scored(items).scores["grad-cam"].items()}
    assert counts == {"pointing": 1, "energy": 1, "deletion": 3, "insertion": 3}
    alone = scored(items[:1])
    assert set(alone.scores["grad-cam"]) == {"deletion", "insertion"}
    assert alone.to_dict()["scores"]["grad-cam"]["deletion"]["standard_error"] is None


def test_masks_count_as_boxes_do():
    (item,) = odd_items(1)
    mask = item.region()
    assert mask is not None
    by_mask = dataclasses.replace(item, boxes=None, masks=mask[None])
    assert scored([by_mask]).scores == scored([item]).scores


def test_a_detector_is_scored_by_pointing_alone():
    """One with random weights is sure of nothing: where its scores are raised it finds things, else it finds none."""
    loaded = dense("detect", {"head": "retinanet", **SMALL_VAN}, tuple("abc"))
    shy = Explainer(loaded, device="cpu")
    with pytest.raises(UsageError, match="nothing can be scored in 2 pictures"):
        score_maps(shy, odd_items(2), ["grad-cam"], settings=SETTINGS)
    last: Any = loaded.model.get_submodule("detector.head.classification_head.cls_logits")
    with torch.no_grad():
        last.bias.view(-1, 3)[:, :2] = 0.0  # of each anchor; the third class is found nowhere
    found = score_maps(Explainer(loaded, device="cpu"), odd_items(3), ["grad-cam"], settings=SETTINGS)
    assert found.passed_over == 1
    assert found.scores[CONTROL]["energy"].pictures == 2
    assert set(found.scores["grad-cam"]) == set(found.scores[CONTROL]) == {"pointing", "energy"}
    assert found.curves["grad-cam"] == {}
    blind = dataclasses.replace(odd_items(1)[0], boxes=None)
    with pytest.raises(UsageError, match="nothing can be scored in 1 pictures"):
        score_maps(Explainer(loaded, device="cpu"), [blind], ["grad-cam"])


def test_the_control_has_as_many_cells_at_the_same_places_and_no_two_alike():
    heat = HeatMap(
        cells=np.ones((3, 5), np.float32), covers=(0.0, 0.0, 50.0, 30.0), seen=(0.0, 0.0, 50.0, 30.0),
        size=(30, 50), method="grad-cam", layer="stage3", label="one",
    )  # fmt: skip
    random = np.random.default_rng(0)
    first, second = random_map(heat, random), random_map(heat, random)
    assert (first.method, first.layer, first.covers) == (CONTROL, "stage3", heat.covers)
    assert first.cells.shape == (3, 5)
    assert len(np.unique([*first.cells.ravel(), *second.cells.ravel()])) == 30


def test_a_mean_comes_with_its_standard_error():
    """Of 1, 2, 3, 6: the mean is 3, the variance 14 / 3, and the error its root over 2."""
    assert summarise([1.0, 2.0, 3.0, 6.0]) == (3.0, pytest.approx(math.sqrt(14 / 3) / 2), 4)
    assert summarise([0.25]) == (0.25, None, 1)


@pytest.mark.parametrize("methods", [[], ["grad-cam", "grad-cam"], ["random"], ["no-cam"]])
def test_methods_that_cannot_be_compared_are_refused(methods):
    with pytest.raises(UsageError, match=r"methods are|there is no method 'no-cam'"):
        scored(odd_items(1), methods=methods)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"boxes": np.zeros((2, 3))}, r"boxes are \(2, 3\)"),
        ({"boxes": np.array([[5.0, 5.0, 5.0, 9.0]])}, "wanted left < right"),
        ({"masks": np.ones((1, 83, 61), bool)}, r"masks are \(1, 83, 61\) of bool; wanted \(K, 61, 83\)"),
    ],
)
def test_boxes_and_masks_that_do_not_fit_their_picture_are_refused(change, wanted):
    with pytest.raises(ShapeError, match=wanted):
        scored([dataclasses.replace(odd_items(1)[0], **change)])


def test_without_pictures_and_with_no_tolerance_there_is_nothing_to_score():
    with pytest.raises(UsageError, match="nothing can be scored in 0 pictures"):
        scored([])
    with pytest.raises(UsageError, match="tolerance is -1; wanted a number, at least 0"):
        FaithfulnessSettings(tolerance=-1)
