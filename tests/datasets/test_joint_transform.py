"""Joint augmentation: image, boxes and masks are transformed together, and invisible objects are dropped."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors

from van.datasets.annotations import IGNORE_INDEX
from van.datasets.augment import JointAugmentSettings
from van.datasets.dense_dataset import JointTransform
from van.datasets.scenes import generate_digit_scenes
from van.errors import UsageError
from van.preprocess import ResizePreprocess
from van.training.loader import seeded

RULE = ResizePreprocess(min_size=64, max_size=128, mean=(0.2, 0.4, 0.6))
JITTER = JointAugmentSettings(scale=(0.5, 2.0), crop_size=48, hflip=0.5, photometric_distort=0.5)
COLORS = torch.tensor([[250, 10, 10], [10, 250, 10], [10, 10, 250], [250, 250, 10], [250, 10, 250]])


def make_sample(image: np.ndarray, boxes: list, labels: list, masks: list[np.ndarray] | None = None, **more):
    """Return a sample as ``DenseDataset`` passes it to the transform."""
    size = image.shape[:2]
    sample = {
        "image": tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)),
        "boxes": tv_tensors.BoundingBoxes(torch.tensor(boxes).reshape(-1, 4).float(), format="XYXY", canvas_size=size),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }
    if masks is not None:
        sample["masks"] = tv_tensors.Mask(torch.from_numpy(np.stack(masks) if masks else np.zeros((0, *size), bool)))
    return sample | more


@functools.cache
def digits() -> tuple:
    return tuple(generate_digit_scenes("train", count=20, image_size=64))


def digit_sample(index: int):
    """Return a digit scene with boxes, labels, masks and its segmentation map."""
    scene = digits()[index]
    segmentation_map = tv_tensors.Mask(torch.from_numpy(scene.semantic_mask().astype(np.int16)))
    objects = scene.objects
    return make_sample(
        np.array(scene.image),
        [each.box for each in objects],
        [each.label for each in objects],
        [each.mask for each in objects],
        segmentation_map=segmentation_map,
    )


def rectangles(seed: int, size: tuple[int, int] = (64, 64)):
    """Return up to five rectangles that do not touch, each in the color of its label, on black."""
    random = np.random.default_rng(seed)
    image = np.zeros((*size, 3), np.uint8)
    boxes, labels, masks = [], [], []
    for label in random.permutation(5)[: random.integers(1, 6)].tolist():
        cell = (label % 3 * size[1] // 3, label // 3 * size[0] // 2)
        x, y = (int(start + random.integers(1, 4)) for start in cell)
        width, height = (int(random.integers(8, 16)) for _ in range(2))
        mask = np.zeros(size, bool)
        mask[y : y + height, x : x + width] = True
        image[mask] = COLORS[label].numpy()
        boxes.append((x, y, x + width, y + height)), labels.append(label), masks.append(mask)
    return make_sample(image, boxes, labels, masks)


def transform(sample, augment: JointAugmentSettings, seed: int, rule: ResizePreprocess = RULE):
    with seeded(seed):
        return JointTransform(rule, augment)(sample)


def box_of(mask: Tensor) -> list[int]:
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def fill_boxes(sample):
    """Return the sample with masks that fill their boxes."""
    masks = torch.zeros_like(sample["masks"])
    for mask, (x1, y1, x2, y2) in zip(masks, sample["boxes"].int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return {**sample, "masks": tv_tensors.Mask(masks)}


augmentations = st.builds(
    JointAugmentSettings,
    scale=st.sampled_from([(1.0, 1.0), (0.6, 1.2), (0.5, 2.0)]),
    crop_size=st.sampled_from([0, 31, 48, 97]),
    hflip=st.sampled_from([0.0, 0.5, 1.0]),
    photometric_distort=st.sampled_from([0.0, 0.5]),
)


@settings(deadline=None, max_examples=60)
@given(index=st.integers(0, 19), augment=augmentations, seed=st.integers(0, 2**20))
def test_boxes_fit_their_masks_after_any_transform(index, augment, seed):
    """Within two pixels: a mask is resized to whole pixels. Thin strokes could vanish, so masks are filled."""
    output = transform(fill_boxes(digit_sample(index)), augment, seed)
    assert len(output["boxes"]) == len(output["labels"]) == len(output["masks"])
    for box, mask in zip(output["boxes"].tolist(), output["masks"], strict=True):
        np.testing.assert_allclose(box, box_of(mask), atol=2)
    rows, columns = output["image"].shape[1:]
    assert output["masks"].shape[1:] == output["segmentation_map"].shape == (rows, columns)
    assert output["image"].dtype == torch.uint8
    if len(output["boxes"]):
        assert output["boxes"].min() >= 0
        assert (output["boxes"][:, 2:] <= torch.tensor([columns, rows])).all()


def test_boxes_that_are_not_transformed_do_not_fit():
    """The negative control of the test above."""
    sample = digit_sample(3)
    output = transform(sample, JointAugmentSettings(hflip=1.0), 0)
    wrong = max(
        np.abs(np.subtract(box, box_of(mask))).max()
        for box, mask in zip(sample["boxes"].tolist(), output["masks"], strict=True)
    )
    assert wrong > 4


@settings(deadline=None, max_examples=60)
@given(rectangles_seed=st.integers(0, 50), augment=augmentations, seed=st.integers(0, 2**20))
def test_labels_masks_and_pixels_agree_and_only_visible_objects_are_kept(rectangles_seed, augment, seed):
    augment = dataclasses.replace(augment, photometric_distort=0.0)
    output = transform(rectangles(rectangles_seed), augment, seed)
    pixels = output["image"].permute(1, 2, 0).long()
    for label, mask in zip(output["labels"].tolist(), output["masks"], strict=True):
        median = pixels[mask].median(0).values
        hue = median / median.max().clamp(min=1)  # thin objects are darker, blurred with the background
        assert (COLORS / COLORS.max() - hue).abs().sum(1).argmin() == label
    kept = set(output["labels"].tolist())
    for label, color in enumerate(COLORS):
        area = int(((pixels - color).abs().sum(2) < 60).sum())
        if label in kept:
            assert area or output["masks"][output["labels"].tolist().index(label)].sum() < 40  # thin and blurred
        else:
            assert area < 20  # at most one row at the edge


def test_crop_drops_objects_outside_and_shrinks_boxes_at_its_edge():
    image = np.zeros((64, 64, 3), np.uint8)
    masks = [np.zeros((64, 64), bool) for _ in range(2)]
    masks[0][0:8, 0:8] = masks[1][56:64, 56:64] = True
    sample = make_sample(image, [(0, 0, 8, 8), (56, 56, 64, 64)], [3, 4], masks)
    counts = set()
    for seed in range(40):
        output = transform(sample, JointAugmentSettings(crop_size=40, hflip=0.0), seed)
        counts.add(len(output["labels"]))
        assert output["labels"].tolist() in ([], [3], [4])  # their distance is greater than the crop
        for box in output["boxes"].tolist():
            assert 1 <= box[2] - box[0] <= 8
    assert counts == {0, 1}


def test_cropped_object_has_the_box_of_its_visible_mask():
    """An L with a long foot: where the crop removes the foot, the box is no wider than the stem."""
    mask = np.zeros((64, 64), bool)
    mask[4:60, 4:8] = mask[56:60, 4:60] = True
    sample = make_sample(np.zeros((64, 64, 3), np.uint8), [(4, 4, 60, 60)], [0], [mask])
    widths = []
    for seed in range(60):
        output = transform(sample, JointAugmentSettings(crop_size=32, hflip=0.0), seed)
        for box, left in zip(output["boxes"].tolist(), output["masks"], strict=True):
            assert box == box_of(left)
            widths.append(box[2] - box[0])
    assert min(widths) <= 4 < 20 < max(widths)


def test_padding_has_the_mean_color_the_ignore_index_and_no_objects():
    sample = digit_sample(0)
    output = transform(sample, JointAugmentSettings(crop_size=80, hflip=0.0), 0)
    assert output["image"].shape == (3, 80, 80)
    assert output["image"][:, :64, :64].equal(sample["image"])
    for padding in (output["image"][:, 64:], output["image"][:, :, 64:]):
        assert padding.flatten(1).unique(dim=1).flatten().tolist() == [51, 102, 153]
    assert output["segmentation_map"][:64, :64].equal(sample["segmentation_map"])
    assert (
        output["segmentation_map"][64:].unique().tolist()
        == output["segmentation_map"][:, 64:].unique().tolist()
        == [IGNORE_INDEX]
    )
    assert not output["masks"][:, 64:].any()
    assert output["boxes"].equal(sample["boxes"])


def test_padding_of_maps_keeps_the_dtype_and_the_greatest_id(subtests):
    for dtype in [torch.int16, torch.int32]:
        with subtests.test(dtype=str(dtype)):
            greatest = torch.iinfo(dtype).max if dtype == torch.int16 else 256**3 - 1
            ids = tv_tensors.Mask(torch.full((8, 8), greatest, dtype=dtype))
            sample = {"image": tv_tensors.Image(torch.zeros(3, 8, 8, dtype=torch.uint8)), "segmentation_map": ids}
            output = transform(sample, JointAugmentSettings(scale=(1.5, 1.5), crop_size=100, hflip=1.0), 0)[
                "segmentation_map"
            ]
            assert output.dtype == dtype
            assert output.unique().tolist() == [IGNORE_INDEX, greatest]


def max_class_fractions(max_class_fraction: float) -> list[float]:
    """Return the greatest fraction of one class in crops of an image that is mostly background, over many seeds."""
    labels = torch.zeros(64, 64, dtype=torch.int16)
    labels[30:58, 30:58] = 1
    labels[:8] = IGNORE_INDEX
    sample = {
        "image": tv_tensors.Image(torch.zeros(3, 64, 64, dtype=torch.uint8)),
        "segmentation_map": tv_tensors.Mask(labels),
    }
    fractions = []
    for seed in range(200):
        crop = transform(sample, JointAugmentSettings(crop_size=32, max_class_fraction=max_class_fraction), seed)[
            "segmentation_map"
        ]
        labeled = crop[crop != IGNORE_INDEX]
        fractions.append(float(labeled.unique(return_counts=True)[1].max()) / len(labeled))
    return fractions


def test_crops_filled_by_one_class_are_rare():
    """Nearly half of the crops have several classes, so ten tries fail for less than 1 % of the images."""
    assert np.mean(np.array(max_class_fractions(0.75)) > 0.75) < 0.02
    assert np.mean(np.array(max_class_fractions(1.0)) > 0.75) > 0.3  # negative control: without the rule many are


def test_image_of_one_class_is_cropped():
    sample = {
        "image": tv_tensors.Image(torch.zeros(3, 64, 64, dtype=torch.uint8)),
        "segmentation_map": tv_tensors.Mask(torch.full((64, 64), 5, dtype=torch.int16)),
    }
    assert transform(sample, JITTER, 0)["segmentation_map"].shape == (48, 48)
    unlabeled = {**sample, "segmentation_map": tv_tensors.Mask(torch.full((64, 64), IGNORE_INDEX, dtype=torch.int16))}
    assert transform(unlabeled, JITTER, 0)["segmentation_map"].unique().tolist() == [IGNORE_INDEX]


def test_transform_is_determined_by_the_seed():
    drawn = [transform(digit_sample(2), JITTER, seed) for seed in (7, 8, 7)]
    assert all(drawn[0][name].equal(drawn[2][name]) for name in drawn[0])
    assert not drawn[0]["image"].equal(drawn[1]["image"])


def test_input_sample_is_not_modified():
    sample = digit_sample(1)
    before = {name: value.clone() for name, value in sample.items()}
    transform(sample, JITTER, 3)
    assert all(sample[name].equal(before[name]) for name in before)


def test_transform_without_augmentation_is_the_identity():
    sample = digit_sample(4)
    output = transform(sample, JointAugmentSettings(hflip=0.0), 0)
    assert all(output[name].equal(sample[name]) for name in sample)


def test_size_is_that_of_evaluation_times_a_factor_within_scale():
    sample = rectangles(0, size=(40, 100))
    assert transform(sample, JointAugmentSettings(), 0)["image"].shape[1:] == RULE.resized_size((40, 100)) == (51, 128)
    rows = [transform(sample, JointAugmentSettings(scale=(0.5, 2.0)), seed)["image"].shape[1] for seed in range(60)]
    assert 25 <= min(rows) < 35
    assert 90 < max(rows) <= 102


def test_photometric_distortion_keeps_masks_and_the_order_of_colors():
    """Brightness, contrast, saturation and slight hue changes do not turn red into green."""
    sample = rectangles(1)
    for seed in range(60):
        output = transform(sample, JointAugmentSettings(hflip=0.0, photometric_distort=1.0), seed)
        assert output["masks"].equal(sample["masks"])
        assert not output["image"].equal(sample["image"])
        pixels = output["image"].permute(1, 2, 0).long()
        for label, mask in zip(output["labels"].tolist(), output["masks"], strict=True):
            strong = COLORS[label] > 100
            assert pixels[mask][:, strong].min() > pixels[mask][:, ~strong].max()


def test_images_of_any_shape_keep_their_aspect_ratio_and_object(subtests):
    for augment in [JointAugmentSettings(hflip=1.0), JITTER]:
        for size in [(1, 1), (100, 10_000), (10_000, 100), (1, 3000), (63, 65)]:
            with subtests.test(size=str(size), augment=str(augment)):
                rows, columns = size
                mask = np.ones(size, bool)
                sample = make_sample(np.full((*size, 3), 99, np.uint8), [(0, 0, columns, rows)], [0], [mask])
                output = transform(sample, augment, 1)
                if not augment.crop_size:
                    assert output["image"].shape[1:] == RULE.resized_size(size)
                    assert max(output["image"].shape[1:]) <= 128
                assert output["labels"].tolist() == [0]
                assert output["boxes"].tolist()[0] == pytest.approx(box_of(output["masks"][0]), abs=0.01)


def test_sample_without_objects_is_transformed(subtests):
    for augment in [JointAugmentSettings(), JITTER]:
        with subtests.test(augment=str(augment)):
            sample = make_sample(np.full((50, 70, 3), 99, np.uint8), [], [], [])
            output = transform(sample, augment, 2)
            assert output["boxes"].shape == (0, 4)
            assert output["labels"].dtype == torch.int64
            assert output["masks"].shape == (0, *output["image"].shape[1:])


def test_invalid_setting_raises_with_its_flag_and_value(subtests):
    for values, facts in [
        ({"scale": (2.0, 1.0)}, r"--scale.*\(2\.0, 1\.0\)"),
        ({"scale": (0.0, 1.0)}, r"--scale"),
        ({"scale": (float("nan"), 1.0)}, r"--scale"),
        ({"crop_size": -1}, "--crop-size.*0 pixels.*-1"),
        ({"hflip": 1.5}, r"--hflip.*0 to 1.*1\.5"),
        ({"photometric_distort": float("nan")}, "--photometric-distort.*nan"),
        ({"max_class_fraction": -0.1}, r"--max-class-fraction.*-0\.1"),
    ]:
        with subtests.test(values=str(values), facts=str(facts)), pytest.raises(UsageError, match=facts):
            JointAugmentSettings(**values)
