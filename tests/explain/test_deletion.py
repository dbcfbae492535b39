"""Deletion and insertion equal scores computed by hand, and rank good and bad maps."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from van.errors import ShapeError, UsageError
from van.explain.deletion import Curves, DeletionSettings, deletion_and_insertion_curves, resize_to_input
from van.visualization.heatmap import Heatmap


class LinearClassifier(nn.Module):
    """Two classes; the logit of the second is the weighted sum of the red channel, that of the first is 0."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        logit = (x[:, 0] * self.weights).sum(dim=(1, 2))
        return torch.stack([torch.zeros_like(logit), logit], dim=1)


def linear_classifier(values: list[list[float]]) -> nn.Module:
    return LinearClassifier(torch.tensor(values, dtype=torch.float64)).eval()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_curves_and_areas_equal_those_computed_by_hand():
    """Red is 0, 1, 2, 5 with weights 1, -1, 0, 1; its mean is 2; the map takes 5 first, then 0, 2, 1."""
    network = linear_classifier([[1.0, -1.0], [0.0, 1.0]])
    x = torch.zeros(3, 2, 2, dtype=torch.float64)
    x[0] = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    attribution = np.array([[3.0, -1.0], [0.5, 9.0]])
    settings = DeletionSettings(steps=4, insertion_baseline="mean")
    found = deletion_and_insertion_curves(network, x, attribution, 1, settings)
    deletion = [sigmoid(z) for z in (0 - 1 + 5, 0 - 1 + 2, 2 - 1 + 2, 2 - 1 + 2, 2 - 2 + 2)]
    insertion = [sigmoid(z) for z in (2 - 2 + 2, 2 - 2 + 5, 0 - 2 + 5, 0 - 2 + 5, 0 - 1 + 5)]
    assert found.deletion == pytest.approx(deletion, abs=1e-12)
    assert found.insertion == pytest.approx(insertion, abs=1e-12)
    areas = [(p[0] / 2 + p[1] + p[2] + p[3] + p[4] / 2) / 4 for p in (deletion, insertion)]
    assert found.areas == pytest.approx(areas, abs=1e-12)


@pytest.mark.parametrize(("deletion_baseline", "insertion_baseline"), [("mean", "blur"), ("blur", "mean")])
def test_all_pixels_deleted_leaves_the_baseline(deletion_baseline, insertion_baseline):
    """Reference: the blur of each pixel is the Gaussian-weighted mean of the pixels within the image."""
    random = np.random.default_rng(0)
    rows, columns = 5, 8
    weights, x = random.normal(size=(rows, columns)), torch.from_numpy(random.normal(size=(3, rows, columns)))
    sigma = 0.2 * 5
    blurred = np.zeros((rows, columns))
    for r, c in np.ndindex(rows, columns):
        near = np.exp(-((np.arange(rows)[:, None] - r) ** 2 + (np.arange(columns) - c) ** 2) / (2 * sigma**2))
        blurred[r, c] = (near * x[0].numpy()).sum() / near.sum()
    baselines = {"blur": sigmoid((blurred * weights).sum()), "mean": sigmoid(x[0].mean().item() * weights.sum())}
    settings = DeletionSettings(
        steps=1, deletion_baseline=deletion_baseline, insertion_baseline=insertion_baseline, blur_fraction=0.2
    )
    found = deletion_and_insertion_curves(linear_classifier(weights.tolist()), x, weights, 1, settings)
    assert found.deletion[-1] == pytest.approx(baselines[deletion_baseline], abs=1e-12)
    assert found.insertion[0] == pytest.approx(baselines[insertion_baseline], abs=1e-12)
    assert found.insertion[-1] == found.deletion[0]
    assert abs(baselines["blur"] - baselines["mean"]) > 0.01


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 4), st.integers(0, 2**32 - 1), st.integers(-40, 40))
def test_areas_are_in_0_to_1_and_invariant_to_positive_scaling(rows, columns, steps, seed, power):
    random = np.random.default_rng(seed)
    network = linear_classifier(random.normal(size=(rows, columns)).tolist())
    x = torch.from_numpy(random.normal(size=(3, rows, columns)))
    attribution = random.integers(-2, 3, (rows, columns)).astype(float)  # with ties
    found, scaled = (
        deletion_and_insertion_curves(network, x, values, 1, DeletionSettings(steps=steps))
        for values in (attribution, attribution * 2.0**power)
    )
    assert all(0 <= area <= 1 for area in found.areas)
    assert np.array_equal(found.deletion, scaled.deletion)
    assert np.array_equal(found.insertion, scaled.insertion)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 11), st.integers(3, 11), st.integers(0, 2**32 - 1))
def test_the_ideal_map_beats_its_inverse_and_a_random_map_is_between(rows, columns, seed):
    """The ideal map of a linear network is each pixel's contribution relative to the baseline."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=(rows, columns))
    x = torch.from_numpy(random.normal(size=(3, rows, columns)))
    ideal = weights * (x[0] - x[0].mean()).numpy()
    settings = DeletionSettings(steps=9, insertion_baseline="mean")

    def areas(attribution: np.ndarray) -> tuple[float, float]:
        return deletion_and_insertion_curves(linear_classifier(weights.tolist()), x, attribution, 1, settings).areas

    best, worst, other = areas(ideal), areas(-ideal), areas(random.random((rows, columns)))
    assert best[0] <= other[0] + 1e-12 <= worst[0] + 2e-12
    assert worst[1] <= other[1] + 1e-12 <= best[1] + 2e-12
    assert best[0] < worst[0]


def test_pixels_of_a_constant_map_are_deleted_in_random_order():
    """In row order the upper half would be deleted first, which has all the evidence."""
    weights = np.zeros((20, 20))
    weights[:10] = 0.05
    x = torch.zeros(3, 20, 20, dtype=torch.float64)
    x[0, :10] = 1.0
    settings = [DeletionSettings(steps=2, seed=seed) for seed in (0, 0, 1)]
    constant = np.full((20, 20), 0.25)
    first, again, other = (
        deletion_and_insertion_curves(linear_classifier(weights.tolist()), x, constant, 1, s) for s in settings
    )
    assert first.deletion[1] == again.deletion[1] != other.deletion[1]
    middle = sigmoid(10 * 0.75)  # half of 200 pixels of weight 0.05 are still 1, the others 0.5
    assert first.deletion[1] == pytest.approx(middle, abs=5e-4)
    assert abs(sigmoid(5.0) - middle) > 5e-3  # the result of deleting the upper half first


def test_any_batch_size_gives_the_same_curves():
    network = LinearClassifier(
        torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ).eval()
    x = torch.randn(3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    attribution = np.arange(35.0).reshape(7, 5)
    whole = deletion_and_insertion_curves(network, x, attribution, 0, DeletionSettings(steps=10, batch_size=64))
    assert network.batches == [22]
    parts = deletion_and_insertion_curves(network, x, attribution, 0, DeletionSettings(steps=10, batch_size=5))
    assert network.batches[1:] == [5, 5, 5, 5, 2]
    assert np.array_equal(whole.deletion, parts.deletion)


def test_a_map_is_resized_to_the_network_s_input():
    """The input is 40 x 40 of 60 x 80 pixels, resized to 20 x 20; cells reach over the right and lower edge."""
    heatmap = Heatmap(
        values=np.array([[0.0, 1.0], [2.0, 3.0]], np.float32), extent=(20.0, 10.0, 84.0, 74.0),
        crop_box=(20.0, 10.0, 60.0, 50.0), image_size=(60, 80), method="m", layer="l", label="one",
    )  # fmt: skip
    found = resize_to_input(heatmap, (20, 20))
    on_image = heatmap.to_image_size()[10:50, 20:60]
    assert found.shape == (20, 20)
    assert found == pytest.approx(on_image.reshape(20, 2, 20, 2).mean(axis=(1, 3)), abs=0.04)
    across = (np.arange(20) + 0.5) / 16 - 0.5  # a cell is 32 pixels of the image and 16 of the input
    assert found[0] == pytest.approx(across.clip(0, 1), abs=1e-6)


def test_linear_curves_have_an_area_of_one_half():
    line = np.linspace(1, 0, 5)
    assert Curves(line, line[::-1]).areas == (0.5, 0.5)


@pytest.mark.parametrize(
    ("attribution", "label", "expected"),
    [
        (np.zeros((4, 5)), 1, r"\(4, 5\).*\(3, 4, 6\)"),
        (np.full((4, 6), np.nan), 1, "attribution.*finite"),
        (np.zeros((4, 6)), 2, r"\(\d+, 2\).*label 2"),
        (np.zeros((4, 6)), -1, "label -1"),
    ],
)
def test_maps_and_labels_that_do_not_fit_are_rejected(attribution, label, expected):
    x = torch.zeros(3, 4, 6, dtype=torch.float64)
    with pytest.raises(ShapeError, match=expected):
        deletion_and_insertion_curves(
            linear_classifier([[0.0] * 6] * 4), x, attribution, label, DeletionSettings(steps=3)
        )


def test_more_steps_than_pixels_and_training_mode_are_rejected():
    x, attribution = torch.zeros(3, 2, 2, dtype=torch.float64), np.zeros((2, 2))
    network = linear_classifier([[0.0] * 2] * 2)
    with pytest.raises(UsageError, match=r"steps.*4.*5"):
        deletion_and_insertion_curves(network, x, attribution, 1, DeletionSettings(steps=5))
    with pytest.raises(UsageError, match=r"LinearClassifier.*training mode"):
        deletion_and_insertion_curves(network.train(), x, attribution, 1, DeletionSettings(steps=2))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("steps", 0), ("batch_size", 0), ("deletion_baseline", "black"),
     ("insertion_baseline", ""), ("blur_fraction", 0.0), ("blur_fraction", math.nan)],
)  # fmt: skip
def test_invalid_settings_are_rejected(setting, value):
    with pytest.raises(UsageError, match=setting):
        DeletionSettings(**{setting: value})
