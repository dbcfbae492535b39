"""Training scenes: a picture and all that is marked in it change together, and what is gone is gone."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors

from van.data.marks import IGNORED
from van.data.scene_augment import SceneAugmentSettings
from van.data.scene_transform import SceneTransform
from van.data.scenes import digit_scenes
from van.engine.loader import seeded
from van.errors import UsageError
from van.preprocess import WholePreprocess

RULE = WholePreprocess(short_px=64, long_px=128, mean=(0.2, 0.4, 0.6))
JITTER = SceneAugmentSettings(scale=(0.5, 2.0), crop_px=48, flip=0.5, distort=0.5)
COLOURS = torch.tensor([[250, 10, 10], [10, 250, 10], [10, 10, 250], [250, 250, 10], [250, 10, 250]])


def scene_of(picture: np.ndarray, boxes: list, labels: list, masks: list[np.ndarray] | None = None, **more):
    """What ``MarkedSet`` hands over."""
    size = picture.shape[:2]
    scene = {
        "picture": tv_tensors.Image(torch.from_numpy(picture).permute(2, 0, 1)),
        "boxes": tv_tensors.BoundingBoxes(torch.tensor(boxes).reshape(-1, 4).float(), format="XYXY", canvas_size=size),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }
    if masks is not None:
        scene["masks"] = tv_tensors.Mask(torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *size), bool)))
    return scene | more


@functools.cache
def digits() -> tuple:
    return tuple(digit_scenes("train", count=20, size_px=64))


def digit_scene(number: int):
    """Scene ``number`` of the digits, with boxes, labels, masks and its semantic map."""
    scene = digits()[number]
    map_ = tv_tensors.Mask(torch.from_numpy(scene.semantic_map().astype(np.int16)))
    things = scene.things
    return scene_of(
        np.array(scene.picture), [t.box for t in things], [t.label for t in things], [t.mask for t in things], map=map_
    )


def rectangles(seed: int, size: tuple[int, int] = (64, 64)):
    """Up to five rectangles that do not touch, each of the colour of its label, on black."""
    random = np.random.default_rng(seed)
    picture = np.zeros((*size, 3), np.uint8)
    boxes, labels, masks = [], [], []
    for label in random.permutation(5)[: random.integers(1, 6)].tolist():
        cell = (label % 3 * size[1] // 3, label // 3 * size[0] // 2)
        x, y = (int(start + random.integers(1, 4)) for start in cell)
        width, height = (int(random.integers(8, 16)) for _ in range(2))
        mask = np.zeros(size, bool)
        mask[y : y + height, x : x + width] = True
        picture[mask] = COLOURS[label].numpy()
        boxes.append((x, y, x + width, y + height)), labels.append(label), masks.append(mask)
    return scene_of(picture, boxes, labels, masks)


def changed(scene, augment: SceneAugmentSettings, seed: int, rule: WholePreprocess = RULE):
    with seeded(seed):
        return SceneTransform(rule, augment, ignored=IGNORED)(scene)


def box_of(mask: Tensor) -> list[int]:
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def solid(scene):
    """The scene with things that fill their boxes."""
    masks = torch.zeros_like(scene["masks"])
    for mask, (x1, y1, x2, y2) in zip(masks, scene["boxes"].int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return {**scene, "masks": tv_tensors.Mask(masks)}


settings_of = st.builds(
    SceneAugmentSettings,
    scale=st.sampled_from([(1.0, 1.0), (0.6, 1.2), (0.5, 2.0)]),
    crop_px=st.sampled_from([0, 31, 48, 97]),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    distort=st.sampled_from([0.0, 0.5]),
)


@settings(deadline=None, max_examples=60)
@given(number=st.integers(0, 19), augment=settings_of, seed=st.integers(0, 2**20))
def test_each_box_is_the_box_of_its_mask_whatever_was_changed(number, augment, seed):
    """Within two pixels, for a mask is resized to whole ones; thin strokes may vanish then, so things are solid."""
    found = changed(solid(digit_scene(number)), augment, seed)
    assert len(found["boxes"]) == len(found["labels"]) == len(found["masks"])
    for box, mask in zip(found["boxes"].tolist(), found["masks"], strict=True):
        np.testing.assert_allclose(box, box_of(mask), atol=2)
    rows, columns = found["picture"].shape[1:]
    assert found["masks"].shape[1:] == found["map"].shape == (rows, columns)
    assert found["picture"].dtype == torch.uint8
    if len(found["boxes"]):
        assert found["boxes"].min() >= 0
        assert (found["boxes"][:, 2:] <= torch.tensor([columns, rows])).all()


def test_boxes_that_stayed_behind_would_be_noticed():
    """The control of the test above."""
    scene = digit_scene(3)
    found = changed(scene, SceneAugmentSettings(flip=1.0), 0)
    wrong = max(
        np.abs(np.subtract(box, box_of(mask))).max()
        for box, mask in zip(scene["boxes"].tolist(), found["masks"], strict=True)
    )
    assert wrong > 4


@settings(deadline=None, max_examples=60)
@given(scene=st.integers(0, 50), augment=settings_of, seed=st.integers(0, 2**20))
def test_labels_masks_and_pixels_stay_together_and_only_what_is_seen_is_kept(scene, augment, seed):
    augment = dataclasses.replace(augment, distort=0.0)
    found = changed(rectangles(scene), augment, seed)
    pixels = found["picture"].permute(1, 2, 0).long()
    for label, mask in zip(found["labels"].tolist(), found["masks"], strict=True):
        median = pixels[mask].median(0).values
        hue = median / median.max().clamp(min=1)  # what is thin is darker, blurred with the ground
        assert (COLOURS / COLOURS.max() - hue).abs().sum(1).argmin() == label
    kept = set(found["labels"].tolist())
    for label, colour in enumerate(COLOURS):
        area = int(((pixels - colour).abs().sum(2) < 60).sum())
        if label in kept:
            assert area or found["masks"][found["labels"].tolist().index(label)].sum() < 40  # thin, and blurred away
        else:
            assert area < 20  # at most a row of it, at the edge


def test_what_a_crop_leaves_outside_is_gone_and_what_it_cuts_has_a_smaller_box():
    picture = np.zeros((64, 64, 3), np.uint8)
    masks = [np.zeros((64, 64), bool) for _ in range(2)]
    masks[0][0:8, 0:8] = masks[1][56:64, 56:64] = True
    scene = scene_of(picture, [(0, 0, 8, 8), (56, 56, 64, 64)], [3, 4], masks)
    counts = set()
    for seed in range(40):
        found = changed(scene, SceneAugmentSettings(crop_px=40, flip=0.0), seed)
        counts.add(len(found["labels"]))
        assert found["labels"].tolist() in ([], [3], [4])  # they are further apart than the crop is wide
        for box in found["boxes"].tolist():
            assert 1 <= box[2] - box[0] <= 8
    assert counts == {0, 1}


def test_a_cut_thing_has_the_box_of_what_is_left_of_it():
    """An L, whose foot is long: where the crop takes the foot away, the box is no wider than the stem."""
    mask = np.zeros((64, 64), bool)
    mask[4:60, 4:8] = mask[56:60, 4:60] = True
    scene = scene_of(np.zeros((64, 64, 3), np.uint8), [(4, 4, 60, 60)], [0], [mask])
    widths = []
    for seed in range(60):
        found = changed(scene, SceneAugmentSettings(crop_px=32, flip=0.0), seed)
        for box, left in zip(found["boxes"].tolist(), found["masks"], strict=True):
            assert box == box_of(left)
            widths.append(box[2] - box[0])
    assert min(widths) <= 4 < 20 < max(widths)


def test_padding_is_the_mean_colour_and_ignored_and_holds_no_thing():
    scene = digit_scene(0)
    found = changed(scene, SceneAugmentSettings(crop_px=80, flip=0.0), 0)
    assert found["picture"].shape == (3, 80, 80)
    assert found["picture"][:, :64, :64].equal(scene["picture"])
    for part in (found["picture"][:, 64:], found["picture"][:, :, 64:]):
        assert part.flatten(1).unique(dim=1).flatten().tolist() == [51, 102, 153]
    assert found["map"][:64, :64].equal(scene["map"])
    assert found["map"][64:].unique().tolist() == found["map"][:, 64:].unique().tolist() == [IGNORED]
    assert not found["masks"][:, 64:].any()
    assert found["boxes"].equal(scene["boxes"])


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_padding_ignores_in_maps_of_either_width_and_keeps_the_greatest_id(dtype):
    greatest = torch.iinfo(dtype).max if dtype == torch.int16 else 256**3 - 1
    ids = tv_tensors.Mask(torch.full((8, 8), greatest, dtype=dtype))
    scene = {"picture": tv_tensors.Image(torch.zeros(3, 8, 8, dtype=torch.uint8)), "map": ids}
    found = changed(scene, SceneAugmentSettings(scale=(1.5, 1.5), crop_px=100, flip=1.0), 0)["map"]
    assert found.dtype == dtype
    assert found.unique().tolist() == [IGNORED, greatest]


def one_class_shares(largest_class: float) -> list[float]:
    """Over many seeds: the largest share of one class in a crop of a picture that is mostly ground."""
    ground = torch.zeros(64, 64, dtype=torch.int16)
    ground[30:58, 30:58] = 1
    ground[:8] = IGNORED
    scene = {"picture": tv_tensors.Image(torch.zeros(3, 64, 64, dtype=torch.uint8)), "map": tv_tensors.Mask(ground)}
    shares = []
    for seed in range(200):
        part = changed(scene, SceneAugmentSettings(crop_px=32, largest_class=largest_class), seed)["map"]
        labelled = part[part != IGNORED]
        shares.append(float(labelled.unique(return_counts=True)[1].max()) / len(labelled))
    return shares


def test_hardly_any_crop_is_filled_by_one_class_where_another_crop_exists():
    """Nearly half of the crops are varied enough, so that ten tries fail less than once in a hundred pictures."""
    assert np.mean(np.array(one_class_shares(0.75)) > 0.75) < 0.02
    assert np.mean(np.array(one_class_shares(1.0)) > 0.75) > 0.3  # the control: without the rule many are


def test_a_picture_of_one_class_is_cropped_all_the_same():
    scene = {
        "picture": tv_tensors.Image(torch.zeros(3, 64, 64, dtype=torch.uint8)),
        "map": tv_tensors.Mask(torch.full((64, 64), 5, dtype=torch.int16)),
    }
    assert changed(scene, JITTER, 0)["map"].shape == (48, 48)
    nothing = {**scene, "map": tv_tensors.Mask(torch.full((64, 64), IGNORED, dtype=torch.int16))}
    assert changed(nothing, JITTER, 0)["map"].unique().tolist() == [IGNORED]


def test_one_seed_gives_one_scene_and_another_seed_another():
    seen = [changed(digit_scene(2), JITTER, seed) for seed in (7, 8, 7)]
    assert all(seen[0][name].equal(seen[2][name]) for name in seen[0])
    assert not seen[0]["picture"].equal(seen[1]["picture"])


def test_the_scene_that_is_handed_over_stays_as_it_was():
    scene = digit_scene(1)
    before = {name: value.clone() for name, value in scene.items()}
    changed(scene, JITTER, 3)
    assert all(scene[name].equal(before[name]) for name in before)


def test_with_nothing_to_vary_a_scene_of_its_final_size_comes_back():
    scene = digit_scene(4)
    found = changed(scene, SceneAugmentSettings(flip=0.0), 0)
    assert all(found[name].equal(scene[name]) for name in scene)


def test_the_size_is_the_one_of_evaluation_times_a_factor_within_its_bounds():
    scene = rectangles(0, size=(40, 100))
    assert changed(scene, SceneAugmentSettings(), 0)["picture"].shape[1:] == RULE.seen((40, 100)) == (51, 128)
    rows = [changed(scene, SceneAugmentSettings(scale=(0.5, 2.0)), seed)["picture"].shape[1] for seed in range(60)]
    assert 25 <= min(rows) < 35
    assert 90 < max(rows) <= 102


def test_distortion_keeps_places_and_the_order_of_colours():
    """Brightness, contrast, saturation and a little hue: what is red does not become green."""
    scene = rectangles(1)
    for seed in range(60):
        found = changed(scene, SceneAugmentSettings(flip=0.0, distort=1.0), seed)
        assert found["masks"].equal(scene["masks"])
        assert not found["picture"].equal(scene["picture"])
        pixels = found["picture"].permute(1, 2, 0).long()
        for label, mask in zip(found["labels"].tolist(), found["masks"], strict=True):
            strong = COLOURS[label] > 100
            assert pixels[mask][:, strong].min() > pixels[mask][:, ~strong].max()


@pytest.mark.parametrize("size", [(1, 1), (100, 10_000), (10_000, 100), (1, 3000), (63, 65)])
@pytest.mark.parametrize("augment", [SceneAugmentSettings(flip=1.0), JITTER], ids=["whole", "jitter"])
def test_pictures_of_any_shape_keep_their_aspect_and_their_thing(size, augment):
    rows, columns = size
    mask = np.ones(size, bool)
    scene = scene_of(np.full((*size, 3), 99, np.uint8), [(0, 0, columns, rows)], [0], [mask])
    found = changed(scene, augment, 1)
    if not augment.crop_px:
        assert found["picture"].shape[1:] == RULE.seen(size)
        assert max(found["picture"].shape[1:]) <= 128
    assert found["labels"].tolist() == [0]
    assert found["boxes"].tolist()[0] == pytest.approx(box_of(found["masks"][0]), abs=0.01)


@pytest.mark.parametrize("augment", [SceneAugmentSettings(), JITTER], ids=["whole", "jitter"])
def test_a_scene_without_things_stays_one(augment):
    scene = scene_of(np.full((50, 70, 3), 99, np.uint8), [], [], [])
    found = changed(scene, augment, 2)
    assert found["boxes"].shape == (0, 4)
    assert found["labels"].dtype == torch.int64
    assert found["masks"].shape == (0, *found["picture"].shape[1:])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": (2.0, 1.0)}, r"--scale is \(2.0, 1.0\); wanted two factors"),
        ({"scale": (0.0, 1.0)}, r"--scale is"),
        ({"scale": (float("nan"), 1.0)}, r"--scale is"),
        ({"crop_px": -1}, "--crop-px is -1; wanted at least 0"),
        ({"flip": 1.5}, "--flip is 1.5; wanted a share"),
        ({"distort": float("nan")}, "--distort is nan"),
        ({"largest_class": -0.1}, "--largest-class is -0.1"),
    ],
)
def test_a_setting_that_cannot_be_is_named_by_its_flag(values, message):
    with pytest.raises(UsageError, match=message):
        SceneAugmentSettings(**values)
