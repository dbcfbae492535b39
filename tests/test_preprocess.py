"""The preprocessing equals timm's own, to the bit, and survives JSON unchanged."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from van.errors import ShapeError
from van.images import read_image
from van.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CenterCropPreprocess,
    ResizePreprocess,
    read_preprocess,
    to_tensor,
)

SIZES = [
    (53, 37),
    (37, 53),
    (199, 301),
    (640, 427),
    (427, 641),
    (223, 500),
    (224, 224),
    (248, 248),
    (249, 1001),
    (1, 1),
]
"""Width and height: portrait, landscape, smaller than the crop, equal to the crop's size and to the resize's."""


def noisy_gradient(width: int, height: int) -> Image.Image:
    """Return gradients with noise: smooth enough for a JPEG, rough enough to distinguish resizes."""
    rows, columns = np.mgrid[0:height, 0:width]
    gradients = np.stack([columns / width, rows / height, (rows + columns) / (width + height)], axis=-1) * 160
    noise = np.random.default_rng(width * height).integers(0, 96, (height, width, 3))
    return Image.fromarray((gradients + noise).astype(np.uint8))


def timm_transform(rule: CenterCropPreprocess):
    return create_transform(
        input_size=rule.image_size,
        crop_pct=rule.crop_fraction,
        interpolation=rule.interpolation,
        mean=rule.mean,
        std=rule.std,
        is_training=False,
    )


def test_default_preprocess_equals_timm_to_the_bit(tmp_path, subtests):
    for size in SIZES:
        for suffix in ["png", "jpg"]:
            with subtests.test(size=str(size), suffix=str(suffix)):
                path = tmp_path / f"image.{suffix}"
                noisy_gradient(*size).save(path)
                theirs = timm_transform(CenterCropPreprocess())(Image.open(path).convert("RGB"))
                ours = CenterCropPreprocess()(read_image(path))
                assert ours.shape == (3, 224, 224)
                assert ours.dtype == torch.float32
                assert torch.equal(ours, theirs)


def test_every_setting_has_the_same_effect_as_in_timm(subtests):
    for size in [(199, 301), (301, 52)]:
        for rule in [
            CenterCropPreprocess(mean=IMAGENET_MEAN, std=IMAGENET_STD),
            CenterCropPreprocess(image_size=64, crop_fraction=1.0, interpolation="bilinear"),
            CenterCropPreprocess(image_size=97, crop_fraction=0.875, interpolation="lanczos"),
            CenterCropPreprocess(image_size=33, crop_fraction=0.5, interpolation="nearest"),
            CenterCropPreprocess(image_size=1),
        ]:
            with subtests.test(size=str(size), rule=str(rule)):
                image = noisy_gradient(*size)
                assert torch.equal(rule(image), timm_transform(rule)(image))


def resize_without_crop(image: Image.Image) -> torch.Tensor:
    return to_tensor(image.resize((224, 224), Image.Resampling.BICUBIC))


def bilinear(image: Image.Image) -> torch.Tensor:
    return to_tensor(CenterCropPreprocess(interpolation="bilinear").crop(image))


def without_antialiasing(image: Image.Image) -> torch.Tensor:
    short = min(image.size)
    size = [math.floor(side * 248 / short) for side in (image.height, image.width)]
    resized = torch.nn.functional.interpolate(to_tensor(image)[None], size, mode="bicubic", antialias=False)[0]
    top, left = ((side - 224) // 2 for side in size)
    return resized.clamp(0, 1)[:, top : top + 224, left : left + 224]


def without_crop_margin(image: Image.Image) -> torch.Tensor:
    return to_tensor(CenterCropPreprocess(crop_fraction=1.0).crop(image))


def test_common_wrong_resizes_differ_from_the_correct_one(subtests):
    """Negative control: the comparison above allows no difference; these differ by far more than rounding."""
    for size in [(640, 427), (427, 641)]:
        for wrong_resize in [resize_without_crop, bilinear, without_antialiasing, without_crop_margin]:
            with subtests.test(size=str(size), wrong_resize=str(wrong_resize)):
                image = noisy_gradient(*size)
                difference = (
                    CenterCropPreprocess().normalize(wrong_resize(image)) - CenterCropPreprocess()(image)
                ).abs()
                assert difference.max() > 0.05
                assert difference.mean() > 0.005


def test_cropping_a_very_long_image_before_the_resize_changes_the_tensor_by_less_than_a_tenth(subtests):
    """Beyond an aspect ratio of 16 the ends are cropped before the resize; timm resizes the whole image."""
    for size in [(400, 20), (20, 400), (37, 1013)]:
        with subtests.test(size=str(size)):
            image = noisy_gradient(*size)
            assert (CenterCropPreprocess()(image) - timm_transform(CenterCropPreprocess())(image)).abs().max() < 0.1
            mirrored = image.rotate(180)
            assert (CenterCropPreprocess()(image) - timm_transform(CenterCropPreprocess())(mirrored)).abs().max() > 0.5


def test_preprocessing_a_line_of_pixels_needs_less_than_100_mb(run_python):
    """Resized as a whole, 1x10000 would be 248 x 2,480,000 pixels: 1.8 GB."""
    code = (
        "import resource; from PIL import Image; from van.preprocess import CenterCropPreprocess\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "CenterCropPreprocess()(Image.new('RGB', (50, 50))); before = peak()\n"
        "for size in (1, 10000), (10000, 3), (20000, 1):\n"
        "    tensor = CenterCropPreprocess()(Image.new('RGB', size, 'white'))\n"
        "    assert tensor.eq(1).all() and tensor.shape == (3, 224, 224)\n"
        "print(peak() - before)"
    )
    assert int(run_python(code, OMP_NUM_THREADS="1")) < 100


def test_images_of_any_mode_are_accepted(subtests):
    for mode in ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"]:
        with subtests.test(mode=str(mode)):
            tensor = CenterCropPreprocess(image_size=32)(Image.new(mode, (40, 50)))
            assert tensor.shape == (3, 32, 32)


def test_center_crop_refuses_an_image_without_pixels():
    with pytest.raises(ShapeError, match="0x5"):
        CenterCropPreprocess()(Image.new("RGB", (0, 5)))


def test_to_tensor_scales_every_byte_value_to_0_to_1():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tensor = to_tensor(Image.fromarray(np.stack([values, values[::-1], values.T], axis=-1)))
    assert torch.equal(tensor[0], torch.arange(256.0).view(16, 16) / 255)
    assert torch.equal(tensor[1], tensor[0].flip(0))
    assert torch.equal(tensor[2], tensor[0].T)


def test_normalize_accepts_batches_and_keeps_their_dtype():
    rule = CenterCropPreprocess(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    batch = torch.rand(2, 4, 3, 5, 6, dtype=torch.float64)
    means, deviations = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    assert torch.equal(rule.normalize(batch), (batch - means) / deviations)


finite = st.floats(-10, 10)
positive = st.floats(1e-6, 10)
rules = st.builds(
    CenterCropPreprocess,
    image_size=st.integers(1, 2048),
    crop_fraction=st.floats(0, 1, exclude_min=True),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest", "lanczos"]),
    mean=st.tuples(finite, finite, finite),
    std=st.tuples(positive, positive, positive),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rules)
def test_center_crop_round_trips_through_json(rule):
    restored = CenterCropPreprocess.from_dict(json.loads(json.dumps(rule.to_dict())))
    assert restored == rule
    assert hash(restored) == hash(rule)


def test_an_invalid_center_crop_field_is_named(subtests):
    for name, value in [
        ("image_size", 0),
        ("image_size", -3),
        ("image_size", 224.0),
        ("image_size", "224"),
        ("image_size", None),
        ("crop_fraction", 0),
        ("crop_fraction", 1.01),
        ("crop_fraction", math.nan),
        ("crop_fraction", "0.9"),
        ("interpolation", "cubic"),
        ("interpolation", None),
        ("interpolation", ["bicubic"]),
        ("mean", (0.5,)),
        ("mean", (0.5, 0.5, math.inf)),
        ("mean", 0.5),
        ("mean", "abc"),
        ("mean", None),
        ("std", (0.5, 0.5)),
        ("std", (0.5, 0.5, 0.0)),
        ("std", (1, 1, -1)),
        ("std", (math.nan, 1, 1)),
    ]:
        with subtests.test(name=str(name), value=str(value)):
            with pytest.raises(ShapeError, match=f"^{name}: "):
                CenterCropPreprocess(**{name: value})
            with pytest.raises(ShapeError, match=f"^{name}: "):
                CenterCropPreprocess.from_dict({**CenterCropPreprocess().to_dict(), name: value})


def test_from_dict_refuses_unknown_and_missing_fields(subtests):
    for change in [{"sizepx": 224}, {"image_size": None}]:
        with subtests.test(change=str(change)):
            values = CenterCropPreprocess().to_dict() | change
            if change == {"image_size": None}:
                del values["image_size"]
            with pytest.raises(
                ShapeError, match=r"preprocess: .*interpolation, mean, std, image_size, crop_fraction, got "
            ):
                CenterCropPreprocess.from_dict(values)


def test_a_preprocess_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CenterCropPreprocess().image_size = 3


TIMM = {
    "input_size": (3, 384, 384), "crop_pct": 1.0, "interpolation": "bilinear", "crop_mode": "center",
    "mean": IMAGENET_MEAN, "std": [0.229, 0.224, 0.225], "num_classes": 1000,
}  # fmt: skip


def test_from_timm_reads_a_pretrained_cfg():
    expected = CenterCropPreprocess(
        image_size=384, crop_fraction=1.0, interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    assert CenterCropPreprocess.from_timm(TIMM) == expected


def test_from_timm_refuses_a_config_that_is_no_center_crop_of_an_rgb_image(subtests):
    for change, message in [
        ({"input_size": (3, 224, 256)}, "input_size"),
        ({"input_size": (1, 28, 28)}, "input_size"),
        ({"crop_mode": "squash"}, "crop_mode.*'squash'"),
        ({"interpolation": "random"}, "interpolation.*'random'"),
    ]:
        with subtests.test(change=str(change), message=str(message)), pytest.raises(ShapeError, match=message):
            CenterCropPreprocess.from_timm(TIMM | change)


def test_from_timm_names_the_missing_entries():
    with pytest.raises(ShapeError, match="missing crop_pct, std"):
        CenterCropPreprocess.from_timm({name: value for name, value in TIMM.items() if name not in ("crop_pct", "std")})


@given(rows=st.integers(1, 3000), columns=st.integers(1, 3000), short=st.integers(1, 900), more=st.integers(0, 900))
def test_resized_size_reaches_min_size_or_max_size_and_exceeds_neither(rows, columns, short, more):
    resized = ResizePreprocess(min_size=short, max_size=short + more).resized_size((rows, columns))
    assert min(resized) <= short
    assert max(resized) <= short + more
    assert min(resized) == short or max(resized) == short + more
    exact = min(short / min(rows, columns), (short + more) / max(rows, columns))
    assert all(abs(got - max(1, side * exact)) <= 0.5 for got, side in zip(resized, (rows, columns), strict=True))


def test_resized_size_is_the_size_of_the_tensor(subtests):
    for size, resized in [((1, 1), (800, 800)), ((10_000, 100), (1333, 13)), ((480, 640), (800, 1067))]:
        with subtests.test(size=str(size), resized=str(resized)):
            rule = ResizePreprocess()
            assert rule.resized_size(size) == resized
            assert rule(Image.new("RGB", size[::-1], "white")).shape == (3, *resized)


def test_resize_preprocess_resizes_then_scales_then_normalizes():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    rule = ResizePreprocess(min_size=10, max_size=99, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pixels = np.asarray(image.resize((15, 10), Image.Resampling.BILINEAR)) / 255.0
    expected = (pixels - (0.1, 0.2, 0.3)) / (0.5, 0.6, 0.7)
    np.testing.assert_allclose(rule(image).numpy(), expected.transpose(2, 0, 1), atol=1e-6)


def test_read_preprocess_restores_either_kind(subtests):
    for rule in [
        CenterCropPreprocess(image_size=96),
        ResizePreprocess(min_size=512, max_size=2048, mean=(0.4, 0.5, 0.6)),
    ]:
        with subtests.test(rule=str(rule)):
            assert read_preprocess(json.loads(json.dumps(rule.to_dict()))) == rule


def test_an_invalid_resize_field_is_named(subtests):
    for name, value in [("min_size", 0), ("max_size", 12.5), ("max_size", 100), ("mean", (1, 2))]:
        with subtests.test(name=str(name), value=str(value)), pytest.raises(ShapeError, match=f"^{name}: "):
            ResizePreprocess(**{name: value})


def test_resized_size_refuses_an_image_without_pixels():
    with pytest.raises(ShapeError, match="5x0"):
        ResizePreprocess().resized_size((0, 5))


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(20, 900),
    height=st.integers(20, 900),
    image_size=st.integers(8, 96),
    crop_fraction=st.floats(0.3, 1.0),
)
def test_crop_box_is_where_the_crop_comes_from(width, height, image_size, crop_fraction):
    """The image's colors are its coordinates, so each pixel of the crop shows its place in the image."""
    rule = CenterCropPreprocess(image_size=image_size, crop_fraction=crop_fraction, interpolation="bilinear")
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = Image.fromarray(np.stack([x, y, 0 * x], axis=-1).round().astype(np.uint8))
    crop = np.asarray(rule.crop(image)).astype(float)
    left, top, right, bottom = rule.crop_box((height, width))
    centers = (np.arange(image_size) + 0.5) / image_size
    for channel, (start, end, pixels) in enumerate(((left, right, width), (top, bottom, height))):
        positions, support = start + centers * (end - start), max(1.0, (end - start) / image_size)
        expected = (positions - 0.5) / (pixels - 1) * 255
        actual = crop[:, :, channel].mean(axis=channel)
        inner = (positions > support) & (positions < pixels - support)  # at the edge a resize averages fewer pixels
        # two levels for the rounding of both, and one pixel of the image where that is more
        np.testing.assert_allclose(actual[inner], expected[inner], atol=max(2, 255 / (pixels - 1)))


def test_crop_box_of_a_very_long_image_is_centered_and_that_of_a_resize_is_the_whole_image():
    left, top, right, bottom = CenterCropPreprocess(image_size=32, crop_fraction=1.0).crop_box((10, 10_000))
    assert (left + right) / 2 == pytest.approx(5_000, abs=0.2)
    assert right - left == pytest.approx(10, abs=0.05)
    assert (top, bottom) == (0, 10)
    assert ResizePreprocess(min_size=64, max_size=128).crop_box((37, 90)) == (0.0, 0.0, 90.0, 37.0)
    for rule in (CenterCropPreprocess(), ResizePreprocess()):
        with pytest.raises(ShapeError, match="0x5"):
            rule.crop_box((5, 0))
