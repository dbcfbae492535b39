"""Training augmentation: determined by the seed, and normalized as in evaluation."""

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.synthetic import make_image
from van.datasets.augment import AugmentSettings, training_transform
from van.errors import UsageError
from van.preprocess import IMAGENET_MEAN, IMAGENET_STD, CenterCropPreprocess
from van.training.loader import seeded

RULE = CenterCropPreprocess(image_size=24, crop_fraction=1.0)
SQUARE = make_image((120, 130, 140), seed=5, image_size=(24, 24))
EVERYTHING = AugmentSettings(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5)
NOTHING_RANDOM = AugmentSettings(scale=(1.0, 1.0), hflip=0.0)


def test_transform_is_determined_by_the_seed():
    transform = training_transform(RULE, EVERYTHING)
    drawn = []
    for seed in (7, 8, 7):
        with seeded(seed):
            drawn.append(transform(SQUARE))
    assert drawn[0].equal(drawn[2])
    assert not drawn[0].equal(drawn[1])


def test_transforms_of_equal_settings_agree():
    with seeded(3):
        first = training_transform(RULE, EVERYTHING)(SQUARE)
    transform = training_transform(RULE, EVERYTHING)
    with seeded(3):
        assert transform(SQUARE).equal(first)


def test_augmentation_does_not_modify_the_image_or_the_global_generator():
    before = np.asarray(SQUARE).copy()
    state = torch.get_rng_state()
    with seeded(1):
        training_transform(RULE, EVERYTHING)(SQUARE)
    np.testing.assert_array_equal(np.asarray(SQUARE), before)
    assert torch.get_rng_state().equal(state)


def test_horizontal_flip_has_its_probability():
    mirrored = torch.flip(RULE(SQUARE), dims=[2])
    counts = {}
    for probability in (0.0, 0.5, 1.0):
        transform = training_transform(RULE, AugmentSettings(scale=(1.0, 1.0), hflip=probability))
        outputs = []
        for seed in range(40):
            with seeded(seed):
                outputs.append(transform(SQUARE))
        flipped = [torch.allclose(tensor, mirrored, atol=0.02) for tensor in outputs]
        straight = [torch.allclose(tensor, RULE(SQUARE), atol=0.02) for tensor in outputs]
        assert all(one != other for one, other in zip(flipped, straight, strict=True))
        counts[probability] = sum(flipped)
    assert counts[0.0] == 0
    assert counts[1.0] == 40
    assert 8 < counts[0.5] < 32  # outside with a probability below 1 in 10,000


def test_images_are_normalized_as_in_evaluation(subtests):
    """One color and nothing random: training and evaluation must give the model equal inputs."""
    for rule in [
        RULE,
        CenterCropPreprocess(
            image_size=24, crop_fraction=1.0, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear"
        ),
    ]:
        with subtests.test(rule=str(rule)):
            flat = Image.new("RGB", (31, 45), (200, 100, 50))
            trained = training_transform(rule, NOTHING_RANDOM)(flat)
            torch.testing.assert_close(trained, rule(flat), rtol=0, atol=1e-6)
            other = CenterCropPreprocess(image_size=24, crop_fraction=1.0, mean=(0.4, 0.5, 0.6))
            assert not torch.allclose(trained, other(flat), atol=1e-2)


def test_training_crop_is_resized_with_the_interpolation_of_evaluation(subtests):
    for interpolation in ["bicubic", "bilinear", "nearest", "lanczos"]:
        with subtests.test(interpolation=str(interpolation)):
            rule = CenterCropPreprocess(image_size=24, crop_fraction=1.0, interpolation=interpolation)
            sharp = Image.fromarray((np.indices((61, 61)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
            trained = training_transform(rule, NOTHING_RANDOM)(sharp)
            torch.testing.assert_close(trained, rule(sharp), rtol=0, atol=0.02)


def test_crops_keep_an_area_within_scale():
    """Each pixel has its own coordinates as color, so the extent of a crop follows from its values."""
    ramp = np.tile(np.arange(200, dtype=np.uint8), (200, 1))
    stack = Image.fromarray(np.stack([ramp, ramp.T, np.zeros_like(ramp)], -1))
    rule = CenterCropPreprocess(
        image_size=64, crop_fraction=1.0, interpolation="nearest", mean=(0.0,) * 3, std=(1.0,) * 3
    )
    for scale, least, most in (((0.5, 0.6), 0.42, 0.66), ((0.05, 0.1), 0.03, 0.13)):
        transform = training_transform(rule, AugmentSettings(scale=scale, hflip=0.0))
        for seed in range(20):
            with seeded(seed):
                coordinates = transform(stack)[:2] * 255
            width, height = (float(p.max() - p.min()) + 200 / 64 for p in coordinates)
            assert least < width * height / 200**2 < most


def test_random_erasing_has_its_probability():
    flat = Image.new("RGB", (24, 24), (128, 128, 128))
    for probability, least, most in ((0.0, 0, 0), (0.5, 5, 35), (1.0, 40, 40)):
        settings = AugmentSettings(scale=(1.0, 1.0), hflip=0.0, random_erasing=probability)
        transform = training_transform(RULE, settings)
        erased = 0
        for seed in range(40):
            with seeded(seed):
                erased += int(transform(flat).std() > 0.01)
        assert least <= erased <= most


def test_unknown_rand_augment_policy_raises(subtests):
    for policy in ["rand-mX", "nonsense", "rand-m9-zzz1", "v9", "rand-m9-mstdx", "-", "rand-", "rand-9"]:
        with subtests.test(policy=str(policy)), pytest.raises(UsageError, match=f"--rand-augment.*'{policy}'"):
            training_transform(RULE, AugmentSettings(rand_augment=policy))


def test_every_kind_of_timm_policy_is_supported(subtests):
    for policy in ["rand", "rand-m9-n3-inc1", "original-mstd0.5", "augmix-m5-w4-d2", "3a"]:
        with subtests.test(policy=str(policy)):
            transform = training_transform(RULE, AugmentSettings(rand_augment=policy))
            assert transform(SQUARE).shape == (3, 24, 24)


def test_invalid_setting_raises_with_its_flag(subtests):
    for values, facts in [
        ({"scale": (0.0, 1.0)}, "--scale"),
        ({"scale": (0.9, 0.5)}, "--scale"),
        ({"scale": (0.5, 1.5)}, "--scale"),
        ({"scale": (float("nan"), 1.0)}, "--scale"),
        ({"hflip": -0.1}, r"--hflip.*-0\.1"),
        ({"hflip": float("nan")}, "--hflip"),
        ({"random_erasing": 2.0}, r"--random-erasing.*2\.0"),
    ]:
        with subtests.test(values=str(values), facts=str(facts)), pytest.raises(UsageError, match=facts):
            AugmentSettings(**values)
