"""Training pictures: random, but only by the seed, and normalised as the network was told."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.made import picture
from van.data.augment import AugmentSettings, training_transform
from van.engine.loader import seeded
from van.errors import UsageError
from van.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess

RULE = Preprocess(size_px=24, crop_fraction=1.0)
SQUARE = picture((120, 130, 140), seed=5, size_px=(24, 24))
EVERYTHING = AugmentSettings(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5)
NOTHING_RANDOM = AugmentSettings(scale=(1.0, 1.0), flip=0.0)


def test_one_seed_gives_one_tensor_and_another_seed_another():
    transform = training_transform(RULE, EVERYTHING)
    seen = []
    for seed in (7, 8, 7):
        with seeded(seed):
            seen.append(transform(SQUARE))
    assert seen[0].equal(seen[2])
    assert not seen[0].equal(seen[1])


def test_a_second_transform_of_the_same_settings_agrees():
    with seeded(3):
        first = training_transform(RULE, EVERYTHING)(SQUARE)
    transform = training_transform(RULE, EVERYTHING)
    with seeded(3):
        assert transform(SQUARE).equal(first)


def test_augmenting_leaves_the_picture_and_the_generators_as_they_were():
    before = np.asarray(SQUARE).copy()
    state = torch.get_rng_state()
    with seeded(1):
        training_transform(RULE, EVERYTHING)(SQUARE)
    np.testing.assert_array_equal(np.asarray(SQUARE), before)
    assert torch.get_rng_state().equal(state)


def test_a_mirror_image_comes_with_its_probability():
    mirrored = torch.flip(RULE(SQUARE), dims=[2])
    counts = {}
    for probability in (0.0, 0.5, 1.0):
        transform = training_transform(RULE, AugmentSettings(scale=(1.0, 1.0), flip=probability))
        seen = []
        for seed in range(40):
            with seeded(seed):
                seen.append(transform(SQUARE))
        flipped = [torch.allclose(tensor, mirrored, atol=0.02) for tensor in seen]
        straight = [torch.allclose(tensor, RULE(SQUARE), atol=0.02) for tensor in seen]
        assert all(one != other for one, other in zip(flipped, straight, strict=True))
        counts[probability] = sum(flipped)
    assert counts[0.0] == 0
    assert counts[1.0] == 40
    assert 8 < counts[0.5] < 32  # chance has each seed's flip once; outside lies less than one run in 10,000


@pytest.mark.parametrize(
    "rule",
    [RULE, Preprocess(size_px=24, crop_fraction=1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear")],
)
def test_pictures_are_normalised_as_in_evaluation(rule):
    """One colour, nothing random: training and evaluation must feed the network the same numbers."""
    flat = Image.new("RGB", (31, 45), (200, 100, 50))
    trained = training_transform(rule, NOTHING_RANDOM)(flat)
    torch.testing.assert_close(trained, rule(flat), rtol=0, atol=1e-6)
    other = Preprocess(size_px=24, crop_fraction=1.0, mean=(0.4, 0.5, 0.6))
    assert not torch.allclose(trained, other(flat), atol=1e-2)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
def test_a_training_crop_is_resized_with_the_rule_s_interpolation(interpolation):
    rule = Preprocess(size_px=24, crop_fraction=1.0, interpolation=interpolation)
    sharp = Image.fromarray((np.indices((61, 61)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    trained = training_transform(rule, NOTHING_RANDOM)(sharp)
    torch.testing.assert_close(trained, rule(sharp), rtol=0, atol=0.02)


def test_crops_keep_at_least_the_share_asked_for():
    """Each pixel holds its own place, so that the reach of a crop can be read off it."""
    ramp = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    stack = Image.fromarray(np.stack([ramp, ramp.T, np.zeros_like(ramp)], -1))
    rule = Preprocess(size_px=64, crop_fraction=1.0, interpolation="nearest", mean=(0.0,) * 3, std=(1.0,) * 3)
    for scale, least, most in (((0.5, 0.6), 0.42, 0.66), ((0.05, 0.1), 0.03, 0.13)):
        transform = training_transform(rule, AugmentSettings(scale=scale, flip=0.0))
        for seed in range(20):
            with seeded(seed):
                places = transform(stack)[:2] * 255
            width, height = (float(p.max() - p.min()) + 200 / 64 for p in places)
            assert least < width * height / 200**2 < most


def test_erasing_happens_with_its_probability():
    flat = Image.new("RGB", (24, 24), (128, 128, 128))
    for probability, least, most in ((0.0, 0, 0), (0.5, 5, 35), (1.0, 40, 40)):
        settings = AugmentSettings(scale=(1.0, 1.0), flip=0.0, random_erasing=probability)
        transform = training_transform(RULE, settings)
        erased = 0
        for seed in range(40):
            with seeded(seed):
                erased += int(transform(flat).std() > 0.01)
        assert least <= erased <= most


@pytest.mark.parametrize(
    "policy", ["rand-mX", "nonsense", "rand-m9-zzz1", "v9", "rand-m9-mstdx", "-", "rand-", "rand-9"]
)
def test_a_policy_that_timm_does_not_know_is_bad_usage(policy):
    with pytest.raises(UsageError, match=f"--rand-augment is '{policy}'; wanted such as rand-m9-mstd0.5-inc1"):
        training_transform(RULE, AugmentSettings(rand_augment=policy))


@pytest.mark.parametrize("policy", ["rand", "rand-m9-n3-inc1", "original-mstd0.5", "augmix-m5-w4-d2", "3a"])
def test_every_kind_of_timm_policy_works(policy):
    transform = training_transform(RULE, AugmentSettings(rand_augment=policy))
    assert transform(SQUARE).shape == (3, 24, 24)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": (0.0, 1.0)}, "--scale"),
        ({"scale": (0.9, 0.5)}, "--scale"),
        ({"scale": (0.5, 1.5)}, "--scale"),
        ({"scale": (float("nan"), 1.0)}, "--scale"),
        ({"flip": -0.1}, "--flip is -0.1"),
        ({"flip": float("nan")}, "--flip"),
        ({"random_erasing": 2.0}, "--random-erasing is 2.0"),
    ],
)
def test_settings_that_mean_nothing_are_named(values, message):
    with pytest.raises(UsageError, match=message):
        AugmentSettings(**values)
