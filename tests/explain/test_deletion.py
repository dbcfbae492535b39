"""Deletion and insertion against probabilities worked out by hand, and their order for good and bad maps."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from van.errors import ShapeError, UsageError
from van.explain.deletion import Curves, DeletionSettings, deletion_and_insertion, on_input
from van.results.heat import HeatMap


class Weighed(nn.Module):
    """Two classes; the logit of the second is the weighted sum of the red channel, that of the first is 0."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        logit = (x[:, 0] * self.weights).sum(dim=(1, 2))
        return torch.stack([torch.zeros_like(logit), logit], dim=1)


def weighed(values: list[list[float]]) -> nn.Module:
    return Weighed(torch.tensor(values, dtype=torch.float64)).eval()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_curves_and_areas_are_those_worked_out_by_hand():
    """Red is 0, 1, 2, 5 with weights 1, -1, 0, 1; its mean is 2; the map takes 5 first, then 0, 2, 1."""
    network = weighed([[1.0, -1.0], [0.0, 1.0]])
    seen = torch.zeros(3, 2, 2, dtype=torch.float64)
    seen[0] = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    importance = np.array([[3.0, -1.0], [0.5, 9.0]])
    settings = DeletionSettings(steps=4, inserted_on="mean")
    found = deletion_and_insertion(network, seen, importance, 1, settings)
    deletion = [sigmoid(z) for z in (0 - 1 + 5, 0 - 1 + 2, 2 - 1 + 2, 2 - 1 + 2, 2 - 2 + 2)]
    insertion = [sigmoid(z) for z in (2 - 2 + 2, 2 - 2 + 5, 0 - 2 + 5, 0 - 2 + 5, 0 - 1 + 5)]
    assert found.deletion == pytest.approx(deletion, abs=1e-12)
    assert found.insertion == pytest.approx(insertion, abs=1e-12)
    areas = [(p[0] / 2 + p[1] + p[2] + p[3] + p[4] / 2) / 4 for p in (deletion, insertion)]
    assert found.areas == pytest.approx(areas, abs=1e-12)


@pytest.mark.parametrize(("deleted_to", "inserted_on"), [("mean", "blur"), ("blur", "mean")])
def test_all_pixels_out_leaves_the_mean_or_the_blur_that_was_asked_for(deleted_to, inserted_on):
    """The blur is worked out pixel by pixel, as the mean of what there is with Gaussian weights."""
    random = np.random.default_rng(0)
    rows, columns = 5, 8
    weights, seen = random.normal(size=(rows, columns)), torch.from_numpy(random.normal(size=(3, rows, columns)))
    sigma = 0.2 * 5
    blurred = np.zeros((rows, columns))
    for r, c in np.ndindex(rows, columns):
        near = np.exp(-((np.arange(rows)[:, None] - r) ** 2 + (np.arange(columns) - c) ** 2) / (2 * sigma**2))
        blurred[r, c] = (near * seen[0].numpy()).sum() / near.sum()
    left = {"blur": sigmoid((blurred * weights).sum()), "mean": sigmoid(seen[0].mean().item() * weights.sum())}
    settings = DeletionSettings(steps=1, deleted_to=deleted_to, inserted_on=inserted_on, blur_share=0.2)
    found = deletion_and_insertion(weighed(weights.tolist()), seen, weights, 1, settings)
    assert found.deletion[-1] == pytest.approx(left[deleted_to], abs=1e-12)
    assert found.insertion[0] == pytest.approx(left[inserted_on], abs=1e-12)
    assert found.insertion[-1] == found.deletion[0]
    assert abs(left["blur"] - left["mean"]) > 0.01


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 4), st.integers(0, 2**32 - 1), st.integers(-40, 40))
def test_scores_are_shares_and_keep_under_positive_scaling(rows, columns, steps, seed, power):
    random = np.random.default_rng(seed)
    network = weighed(random.normal(size=(rows, columns)).tolist())
    seen = torch.from_numpy(random.normal(size=(3, rows, columns)))
    importance = random.integers(-2, 3, (rows, columns)).astype(float)  # with equal ones
    found, scaled = (
        deletion_and_insertion(network, seen, values, 1, DeletionSettings(steps=steps))
        for values in (importance, importance * 2.0**power)
    )
    assert all(0 <= area <= 1 for area in found.areas)
    assert np.array_equal(found.deletion, scaled.deletion)
    assert np.array_equal(found.insertion, scaled.insertion)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 11), st.integers(3, 11), st.integers(0, 2**32 - 1))
def test_an_ideal_map_scores_better_than_its_inverse_and_a_random_one_between(rows, columns, seed):
    """Of a linear network the ideal map is what each pixel adds, compared with the ground."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=(rows, columns))
    seen = torch.from_numpy(random.normal(size=(3, rows, columns)))
    ideal = weights * (seen[0] - seen[0].mean()).numpy()
    settings = DeletionSettings(steps=9, inserted_on="mean")

    def areas(importance: np.ndarray) -> tuple[float, float]:
        return deletion_and_insertion(weighed(weights.tolist()), seen, importance, 1, settings).areas

    best, worst, other = areas(ideal), areas(-ideal), areas(random.random((rows, columns)))
    assert best[0] <= other[0] + 1e-12 <= worst[0] + 2e-12
    assert worst[1] <= other[1] + 1e-12 <= best[1] + 2e-12
    assert best[0] < worst[0]


def test_a_flat_map_takes_pixels_in_no_direction():
    """By rows it would take the upper half first, in which all the evidence lies."""
    weights = np.zeros((20, 20))
    weights[:10] = 0.05
    seen = torch.zeros(3, 20, 20, dtype=torch.float64)
    seen[0, :10] = 1.0
    settings = [DeletionSettings(steps=2, seed=seed) for seed in (0, 0, 1)]
    flat = np.full((20, 20), 0.25)
    first, again, other = (deletion_and_insertion(weighed(weights.tolist()), seen, flat, 1, s) for s in settings)
    assert first.deletion[1] == again.deletion[1] != other.deletion[1]
    middle = sigmoid(10 * 0.75)  # half of 200 pixels of 0.05 are 1 still, the others 0.5
    assert first.deletion[1] == pytest.approx(middle, abs=5e-4)
    assert abs(sigmoid(5.0) - middle) > 5e-3  # what the upper half first would give


def test_all_steps_go_in_few_batches_and_any_batch_size_gives_the_same():
    network = Weighed(torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).eval()
    seen = torch.randn(3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    importance = np.arange(35.0).reshape(7, 5)
    whole = deletion_and_insertion(network, seen, importance, 0, DeletionSettings(steps=10, batch_size=64))
    assert network.batches == [22]
    parts = deletion_and_insertion(network, seen, importance, 0, DeletionSettings(steps=10, batch_size=5))
    assert network.batches[1:] == [5, 5, 5, 5, 2]
    assert np.array_equal(whole.deletion, parts.deletion)


def test_a_map_is_brought_to_what_the_network_sees():
    """The network saw 40 x 40 of 60 x 80 pixels as 20 x 20; its cells reach over the right and lower edge."""
    heat = HeatMap(
        cells=np.array([[0.0, 1.0], [2.0, 3.0]], np.float32), covers=(20.0, 10.0, 84.0, 74.0),
        seen=(20.0, 10.0, 60.0, 50.0), size=(60, 80), method="m", layer="l", label="one",
    )  # fmt: skip
    found = on_input(heat, (20, 20))
    on_picture = heat.on_picture()[10:50, 20:60]
    assert found.shape == (20, 20)
    assert found == pytest.approx(on_picture.reshape(20, 2, 20, 2).mean(axis=(1, 3)), abs=0.04)
    across = (np.arange(20) + 0.5) / 16 - 0.5  # a cell is 32 pixels of the picture and 16 of the network's
    assert found[0] == pytest.approx(across.clip(0, 1), abs=1e-6)


def test_curves_of_straight_lines_have_half_the_area():
    line = np.linspace(1, 0, 5)
    assert Curves(line, line[::-1]).areas == (0.5, 0.5)


@pytest.mark.parametrize(
    ("importance", "label", "wanted"),
    [
        (np.zeros((4, 5)), 1, r"the map is \(4, 5\), what the network sees \(3, 4, 6\)"),
        (np.full((4, 6), np.nan), 1, "the map is not finite everywhere"),
        (np.zeros((4, 6)), 2, r"label is 2, the network gives \(\d+, 2\)"),
        (np.zeros((4, 6)), -1, "label is -1"),
    ],
)
def test_maps_and_labels_that_do_not_fit_are_refused(importance, label, wanted):
    seen = torch.zeros(3, 4, 6, dtype=torch.float64)
    with pytest.raises(ShapeError, match=wanted):
        deletion_and_insertion(weighed([[0.0] * 6] * 4), seen, importance, label, DeletionSettings(steps=3))


def test_more_steps_than_pixels_and_a_network_in_training_are_refused():
    seen, importance = torch.zeros(3, 2, 2, dtype=torch.float64), np.zeros((2, 2))
    network = weighed([[0.0] * 2] * 2)
    with pytest.raises(UsageError, match="steps is 5 for 4 pixels"):
        deletion_and_insertion(network, seen, importance, 1, DeletionSettings(steps=5))
    with pytest.raises(UsageError, match=r"training mode; call eval\(\)"):
        deletion_and_insertion(network.train(), seen, importance, 1, DeletionSettings(steps=2))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("steps", 0), ("batch_size", 0), ("deleted_to", "black"), ("inserted_on", ""), ("blur_share", 0.0),
     ("blur_share", math.nan)],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(setting, value):
    with pytest.raises(UsageError, match=f"{setting} is .*; wanted"):
        DeletionSettings(**{setting: value})
