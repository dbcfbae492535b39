"""The picture -> tensor rule is timm's own, to the bit, and travels through JSON unchanged."""

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
from van.pictures import read_picture
from van.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, WholePreprocess, read_preprocess, to_tensor

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
"""Width and height: portrait, landscape, smaller than the crop, of exactly its size, of the resize's size."""


def scene(width: int, height: int) -> Image.Image:
    """Slopes with noise on them: smooth enough for a JPEG, rough enough to tell resizes apart."""
    rows, columns = np.mgrid[0:height, 0:width]
    slopes = np.stack([columns / width, rows / height, (rows + columns) / (width + height)], axis=-1) * 160
    noise = np.random.default_rng(width * height).integers(0, 96, (height, width, 3))
    return Image.fromarray((slopes + noise).astype(np.uint8))


def timm_transform(rule: Preprocess):
    return create_transform(
        input_size=rule.size_px,
        crop_pct=rule.crop_fraction,
        interpolation=rule.interpolation,
        mean=rule.mean,
        std=rule.std,
        is_training=False,
    )


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_default_rule_is_timm_s_to_the_bit(tmp_path, size, suffix):
    path = tmp_path / f"scene.{suffix}"
    scene(*size).save(path)
    theirs = timm_transform(Preprocess())(Image.open(path).convert("RGB"))
    ours = Preprocess()(read_picture(path))
    assert ours.shape == (3, 224, 224)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "rule",
    [
        Preprocess(mean=IMAGENET_MEAN, std=IMAGENET_STD),
        Preprocess(size_px=64, crop_fraction=1.0, interpolation="bilinear"),
        Preprocess(size_px=97, crop_fraction=0.875, interpolation="lanczos"),
        Preprocess(size_px=33, crop_fraction=0.5, interpolation="nearest"),
        Preprocess(size_px=1),
    ],
    ids=lambda rule: f"{rule.interpolation}-{rule.size_px}",
)
@pytest.mark.parametrize("size", [(199, 301), (301, 52)], ids=["portrait", "landscape"])
def test_every_setting_means_what_it_means_in_timm(rule, size):
    picture = scene(*size)
    assert torch.equal(rule(picture), timm_transform(rule)(picture))


def straight_to_the_crop(picture: Image.Image) -> torch.Tensor:
    return to_tensor(picture.resize((224, 224), Image.Resampling.BICUBIC))


def bilinear(picture: Image.Image) -> torch.Tensor:
    return to_tensor(Preprocess(interpolation="bilinear").crop(picture))


def without_antialiasing(picture: Image.Image) -> torch.Tensor:
    short = min(picture.size)
    size = [math.floor(side * 248 / short) for side in (picture.height, picture.width)]
    resized = torch.nn.functional.interpolate(to_tensor(picture)[None], size, mode="bicubic", antialias=False)[0]
    top, left = ((side - 224) // 2 for side in size)
    return resized.clamp(0, 1)[:, top : top + 224, left : left + 224]


def without_the_crop_s_margin(picture: Image.Image) -> torch.Tensor:
    return to_tensor(Preprocess(crop_fraction=1.0).crop(picture))


@pytest.mark.parametrize(
    "wrong", [straight_to_the_crop, bilinear, without_antialiasing, without_the_crop_s_margin], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("size", [(640, 427), (427, 641)], ids=["landscape", "portrait"])
def test_the_usual_wrong_resizes_are_told_apart(wrong, size):
    """The comparison above allows no difference at all; these differ by far more than any rounding."""
    picture = scene(*size)
    difference = (Preprocess().normalise(wrong(picture)) - Preprocess()(picture)).abs()
    assert difference.max() > 0.05
    assert difference.mean() > 0.005


@pytest.mark.parametrize("size", [(400, 20), (20, 400), (37, 1013)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_cutting_out_the_middle_of_a_long_picture_changes_next_to_nothing(size):
    """Beyond 16 to 1 the ends go before the resize; timm resizes all of it."""
    picture = scene(*size)
    assert (Preprocess()(picture) - timm_transform(Preprocess())(picture)).abs().max() < 0.1
    mirrored = picture.rotate(180)
    assert (Preprocess()(picture) - timm_transform(Preprocess())(mirrored)).abs().max() > 0.5


def test_a_line_of_pixels_needs_little_memory(run_python):
    """Resized whole, 1x10000 would be 248 x 2,480,000: 1.8 GB."""
    code = (
        "import resource; from PIL import Image; from van.preprocess import Preprocess\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "Preprocess()(Image.new('RGB', (50, 50))); before = peak()\n"
        "for size in (1, 10000), (10000, 3), (20000, 1):\n"
        "    tensor = Preprocess()(Image.new('RGB', size, 'white'))\n"
        "    assert tensor.eq(1).all() and tensor.shape == (3, 224, 224)\n"
        "print(peak() - before)"
    )
    assert int(run_python(code, OMP_NUM_THREADS="1")) < 100


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_any_mode_of_picture_is_taken(mode):
    tensor = Preprocess(size_px=32)(Image.new(mode, (40, 50)))
    assert tensor.shape == (3, 32, 32)


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(ShapeError, match="0x5 has no pixels"):
        Preprocess()(Image.new("RGB", (0, 5)))


def test_tensors_hold_every_byte_as_a_fraction():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tensor = to_tensor(Image.fromarray(np.stack([values, values[::-1], values.T], axis=-1)))
    assert torch.equal(tensor[0], torch.arange(256.0).view(16, 16) / 255)
    assert torch.equal(tensor[1], tensor[0].flip(0))
    assert torch.equal(tensor[2], tensor[0].T)


def test_normalising_takes_batches_and_keeps_their_precision():
    rule = Preprocess(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    batch = torch.rand(2, 4, 3, 5, 6, dtype=torch.float64)
    means, deviations = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    assert torch.equal(rule.normalise(batch), (batch - means) / deviations)


finite = st.floats(-10, 10)
positive = st.floats(1e-6, 10)
rules = st.builds(
    Preprocess,
    size_px=st.integers(1, 2048),
    crop_fraction=st.floats(0, 1, exclude_min=True),
    interpolation=st.sampled_from(["bicubic", "bilinear", "nearest", "lanczos"]),
    mean=st.tuples(finite, finite, finite),
    std=st.tuples(positive, positive, positive),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rules)
def test_a_rule_comes_back_from_json_unchanged(rule):
    again = Preprocess.from_dict(json.loads(json.dumps(rule.to_dict())))
    assert again == rule
    assert hash(again) == hash(rule)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size_px", 0), ("size_px", -3), ("size_px", 224.0), ("size_px", "224"), ("size_px", None),
        ("crop_fraction", 0), ("crop_fraction", 1.01), ("crop_fraction", math.nan), ("crop_fraction", "0.9"),
        ("interpolation", "cubic"), ("interpolation", None), ("interpolation", ["bicubic"]),
        ("mean", (0.5,)), ("mean", (0.5, 0.5, math.inf)), ("mean", 0.5), ("mean", "abc"), ("mean", None),
        ("std", (0.5, 0.5)), ("std", (0.5, 0.5, 0.0)), ("std", (1, 1, -1)), ("std", (math.nan, 1, 1)),
    ],
)  # fmt: skip
def test_a_bad_setting_is_named(name, value):
    with pytest.raises(ShapeError, match=f"^{name} is "):
        Preprocess(**{name: value})
    with pytest.raises(ShapeError, match=f"^{name} is "):
        Preprocess.from_dict({**Preprocess().to_dict(), name: value})


@pytest.mark.parametrize("change", [{"sizepx": 224}, {"size_px": None}])
def test_a_header_with_other_names_is_refused_rather_than_filled_up(change):
    values = Preprocess().to_dict() | change
    if change == {"size_px": None}:
        del values["size_px"]
    with pytest.raises(
        ShapeError, match=r"preprocess holds .*; wanted interpolation, mean, std, size_px, crop_fraction"
    ):
        Preprocess.from_dict(values)


def test_a_rule_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Preprocess().size_px = 3


TIMM = {
    "input_size": (3, 384, 384), "crop_pct": 1.0, "interpolation": "bilinear", "crop_mode": "center",
    "mean": IMAGENET_MEAN, "std": [0.229, 0.224, 0.225], "num_classes": 1000,
}  # fmt: skip


def test_a_timm_config_is_read():
    wanted = Preprocess(size_px=384, crop_fraction=1.0, interpolation="bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert Preprocess.from_timm(TIMM) == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_size": (3, 224, 256)}, "input_size"),
        ({"input_size": (1, 28, 28)}, "input_size"),
        ({"crop_mode": "squash"}, "crop_mode is 'squash'"),
        ({"interpolation": "random"}, "interpolation is 'random'"),
    ],
)
def test_a_timm_config_that_this_rule_cannot_follow_is_refused(change, message):
    with pytest.raises(ShapeError, match=message):
        Preprocess.from_timm(TIMM | change)


def test_a_timm_config_without_its_rule_is_refused():
    with pytest.raises(ShapeError, match="lacks crop_pct, std"):
        Preprocess.from_timm({name: value for name, value in TIMM.items() if name not in ("crop_pct", "std")})


@given(rows=st.integers(1, 3000), columns=st.integers(1, 3000), short=st.integers(1, 900), more=st.integers(0, 900))
def test_a_whole_picture_fills_one_of_its_two_bounds_and_exceeds_none(rows, columns, short, more):
    seen = WholePreprocess(short_px=short, long_px=short + more).seen((rows, columns))
    assert min(seen) <= short
    assert max(seen) <= short + more
    assert min(seen) == short or max(seen) == short + more
    exact = min(short / min(rows, columns), (short + more) / max(rows, columns))
    assert all(abs(got - max(1, side * exact)) <= 0.5 for got, side in zip(seen, (rows, columns), strict=True))


@pytest.mark.parametrize(
    ("size", "seen"), [((1, 1), (800, 800)), ((10_000, 100), (1333, 13)), ((480, 640), (800, 1067))]
)
def test_whole_pictures_of_any_shape_become_tensors_of_the_size_foretold(size, seen):
    rule = WholePreprocess()
    assert rule.seen(size) == seen
    assert rule(Image.new("RGB", size[::-1], "white")).shape == (3, *seen)


def test_a_whole_picture_is_resized_then_scaled_then_normalised():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    rule = WholePreprocess(short_px=10, long_px=99, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pixels = np.asarray(picture.resize((15, 10), Image.Resampling.BILINEAR)) / 255.0
    wanted = (pixels - (0.1, 0.2, 0.3)) / (0.5, 0.6, 0.7)
    np.testing.assert_allclose(rule(picture).numpy(), wanted.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    "rule", [Preprocess(size_px=96), WholePreprocess(short_px=512, long_px=2048, mean=(0.4, 0.5, 0.6))]
)
def test_each_rule_comes_back_from_its_plain_values(rule):
    assert read_preprocess(json.loads(json.dumps(rule.to_dict()))) == rule


@pytest.mark.parametrize(("name", "value"), [("short_px", 0), ("long_px", 12.5), ("long_px", 100), ("mean", (1, 2))])
def test_a_bad_setting_of_a_whole_picture_is_named(name, value):
    with pytest.raises(ShapeError, match=f"^{name} is "):
        WholePreprocess(**{name: value})


def test_a_picture_without_pixels_is_refused_whole_too():
    with pytest.raises(ShapeError, match="5x0 has no pixels"):
        WholePreprocess().seen((0, 5))


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(20, 900),
    height=st.integers(20, 900),
    size_px=st.integers(8, 96),
    crop_fraction=st.floats(0.3, 1.0),
)
def test_the_window_is_where_the_crop_comes_from(width, height, size_px, crop_fraction):
    """A picture whose colours are its coordinates tells where each pixel of the crop was."""
    rule = Preprocess(size_px=size_px, crop_fraction=crop_fraction, interpolation="bilinear")
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    picture = Image.fromarray(np.stack([x, y, 0 * x], axis=-1).round().astype(np.uint8))
    crop = np.asarray(rule.crop(picture)).astype(float)
    left, top, right, bottom = rule.window((height, width))
    middles = (np.arange(size_px) + 0.5) / size_px
    for channel, (start, end, pixels) in enumerate(((left, right, width), (top, bottom, height))):
        places, reach = start + middles * (end - start), max(1.0, (end - start) / size_px)
        wanted = (places - 0.5) / (pixels - 1) * 255
        seen = crop[:, :, channel].mean(axis=channel)
        inner = (places > reach) & (places < pixels - reach)  # at the edge a resize has less to average
        # two levels for the rounding of both, and one pixel of the picture where that is more
        np.testing.assert_allclose(seen[inner], wanted[inner], atol=max(2, 255 / (pixels - 1)))


def test_the_window_of_a_strip_is_in_its_middle_and_that_of_a_whole_picture_is_all_of_it():
    left, top, right, bottom = Preprocess(size_px=32, crop_fraction=1.0).window((10, 10_000))
    assert (left + right) / 2 == pytest.approx(5_000, abs=0.2)
    assert right - left == pytest.approx(10, abs=0.05)
    assert (top, bottom) == (0, 10)
    assert WholePreprocess(short_px=64, long_px=128).window((37, 90)) == (0.0, 0.0, 90.0, 37.0)
    for rule in (Preprocess(), WholePreprocess()):
        with pytest.raises(ShapeError, match="a picture of 0x5 has no pixels"):
            rule.window((5, 0))
