"""Digit scenes: reproducible by seed, with disjoint masks; their files follow COCO's and ADE20K's formats."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from van.datasets.annotations import Issues
from van.datasets.digits import LABELS, load_digits
from van.datasets.folder import load_image_folder
from van.datasets.formats import load_split
from van.datasets.scenes import BACKGROUND_ID, Scene, encode_rle, generate_digit_scenes, write_digit_scenes
from van.errors import UsageError


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return list(generate_digit_scenes("train", count=30, image_size=96))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "scenes"
    write_digit_scenes(folder, train=6, validation=3, image_size=64)
    return folder


def test_scene_does_not_depend_on_the_count(scenes):
    again = list(generate_digit_scenes("train", count=3, image_size=96))
    for first, second in zip(scenes, again, strict=False):
        assert first.image.tobytes() == second.image.tobytes()
        assert [each.label for each in first.objects] == [each.label for each in second.objects]
    other = next(generate_digit_scenes("train", count=1, image_size=96, seed=1))
    assert other.image.tobytes() != scenes[0].image.tobytes()


def test_scenes_of_a_seed_equal_the_recorded_ones(subtests):
    """The digests were recorded before ``max_digits`` was added."""
    for split, count, image_size, seed, digest in [
        ("train", 12, 128, 0, "f809d2c05266659e4f34a3b7b0c8fcc8cf5e1bbbc19e5a11f065aea92fe9e21b"),
        ("val", 12, 64, 0, "d5f2119c0c595b6bbac4f3bbe31ae1a9b6cf7bee8dbdf389f8c5ea3a0c5a938d"),
        ("train", 40, 32, 3, "797d21955e5d06166538a71390df9fd484961bef02190c23a04fe534a30735c1"),
    ]:
        with subtests.test(
            split=str(split), count=str(count), image_size=str(image_size), seed=str(seed), digest=str(digest)
        ):
            recomputed = hashlib.sha256()
            for scene in generate_digit_scenes(split, count=count, image_size=image_size, seed=seed):
                recomputed.update(scene.image.tobytes())
                for each in scene.objects:
                    recomputed.update(bytes([each.label]) + each.mask.tobytes())
            assert recomputed.hexdigest() == digest


def test_scenes_have_at_most_max_digits(subtests):
    for max_digits in [1, 2, 9]:
        with subtests.test(max_digits=str(max_digits)):
            counts = [
                len(scene.objects)
                for scene in generate_digit_scenes("val", count=150, image_size=96, max_digits=max_digits)
            ]
            assert max(counts) <= max_digits
            assert max(counts) > max_digits / 2
            if max_digits == 1:
                assert set(counts) == {1}


def test_scene_of_one_digit_is_generated_again_if_the_digit_has_no_ink(monkeypatch):
    from van.datasets import scenes as module

    whole, blank = module._place_digit, iter([True, True, False])
    monkeypatch.setattr(module, "_place_digit", lambda *a: whole(*a) * (not next(blank, False)))
    (scene,) = generate_digit_scenes("train", count=1, image_size=64, max_digits=1)
    assert len(scene.objects) == 1
    assert next(blank, None) is None


def test_validation_scenes_differ_and_show_validation_digits(monkeypatch, scenes):
    from van.datasets import scenes as module

    used_digits = set()
    whole = module._place_digit
    monkeypatch.setattr(
        module, "_place_digit", lambda digit, *others: (used_digits.add(digit.name), whole(digit, *others))[1]
    )
    validation = list(generate_digit_scenes("val", count=10, image_size=96))
    assert used_digits <= {item.name for item in load_digits().validation}
    assert validation[0].image.tobytes() != scenes[0].image.tobytes()


def test_masks_do_not_overlap_and_boxes_fit_them(scenes):
    for scene in scenes:
        assert (sum(each.mask.astype(int) for each in scene.objects) <= 1).all()
        for each in scene.objects:
            x1, y1, x2, y2 = each.box
            assert each.mask[y1:y2, x1:x2].sum() == each.mask.sum() > 0
            assert each.mask[y1, :].any() and each.mask[y2 - 1, :].any()  # noqa: PT018
            assert each.mask[:, x1].any() and each.mask[:, x2 - 1].any()  # noqa: PT018


def test_scenes_vary_in_classes_sizes_and_counts(scenes):
    objects = [each for scene in scenes for each in scene.objects]
    sides = [max(t.box[2] - t.box[0], t.box[3] - t.box[1]) for t in objects]
    assert {each.label for each in objects} == set(range(10))
    assert min(sides) < 16
    assert max(sides) > 36
    assert {len(scene.objects) for scene in scenes} >= {1, 2, 3, 4}


def test_digits_contrast_with_the_background(scenes):
    """A digit's ink differs in brightness from the pixels around it."""
    differences = []
    for scene in scenes:
        gray = np.asarray(scene.image.convert("L")).astype(float)
        background = scene.semantic_mask() == 0
        differences += [abs(gray[each.mask].mean() - gray[background].mean()) for each in scene.objects]
    assert np.median(differences) > 40


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_run_lengths_follow_coco(rows, columns, seed):
    """Runs of zeros and ones alternate, column by column, zeros first."""
    mask = np.random.default_rng(seed).random((rows, columns)) > 0.5
    rle = encode_rle(mask)
    runs = np.repeat(np.arange(len(rle["counts"])) % 2, rle["counts"])
    assert rle["size"] == [rows, columns]
    assert np.array_equal(runs.reshape(columns, rows).T.astype(bool), mask)


def test_files_contain_the_annotations_of_the_scenes(subtests, folder):
    for split, count in [("train", 6), ("val", 3)]:
        with subtests.test(split=str(split), count=str(count)):
            coco, ade = folder / "coco", folder / "ade"
            instances = json.loads((coco / "annotations" / f"instances_{split}.json").read_text())
            panoptic = json.loads((coco / "annotations" / f"panoptic_{split}.json").read_text())
            ade_split = {"train": "training", "val": "validation"}[split]
            assert [category["name"] for category in instances["categories"]] == list(LABELS)
            assert len({annotation["id"] for annotation in instances["annotations"]}) == len(instances["annotations"])
            for index, scene in enumerate(generate_digit_scenes(split, count=count, image_size=64)):
                image = instances["images"][index]
                assert Image.open(coco / split / image["file_name"]).tobytes() == scene.image.tobytes()
                assert Image.open(ade / "images" / ade_split / image["file_name"]).tobytes() == scene.image.tobytes()
                annotations = [a for a in instances["annotations"] if a["image_id"] == image["id"]]
                for annotation, each in zip(annotations, scene.objects, strict=True):
                    x, y, width, height = annotation["bbox"]
                    assert (x, y, x + width, y + height) == each.box
                    assert annotation["category_id"] == each.label + 1
                    assert annotation["segmentation"] == encode_rle(each.mask)
                semantic = np.asarray(Image.open(ade / "annotations" / ade_split / image["file_name"]))
                assert np.array_equal(semantic, scene.semantic_mask() + 1)
                colors = np.asarray(Image.open(coco / "annotations" / f"panoptic_{split}" / image["file_name"])).astype(
                    int
                )
                ids = colors @ [1, 256, 65536]
                entry = panoptic["annotations"][index]
                category = {segment["id"]: segment["category_id"] for segment in entry["segments_info"]}
                category_ids = np.vectorize(category.__getitem__)(ids)
                assert np.array_equal(np.where(category_ids == BACKGROUND_ID, 0, category_ids), scene.semantic_mask())
                assert all((ids == segment["id"]).sum() == segment["area"] for segment in entry["segments_info"])
            assert (ade / "classes.txt").read_text().splitlines() == ["background", *LABELS]


def test_scenes_of_one_digit_are_written_as_class_folders_too(tmp_path):
    """The same images in the same order: the class folder of each scene is its only annotation's label."""
    write_digit_scenes(tmp_path / "single", train=40, validation=20, image_size=32, max_digits=1)
    splits = load_image_folder(tmp_path / "single" / "classes")
    for split, items, count in (("train", splits.train, 40), ("val", splits.validation, 20)):
        dataset = load_split(tmp_path / "single", split, target_type="boxes", issues=Issues())
        by_name = {item.source.name: item for item in items}
        assert len(items) == len(by_name) == len(dataset.images) == count
        for image in dataset.images:
            item, (annotation,) = by_name[image.path.name], image.annotations
            assert splits.class_names[item.target] == dataset.class_names[annotation.label]
            assert item.source.read_bytes() == image.path.read_bytes()


def test_scenes_of_several_digits_have_no_class_folders(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["ade", "coco"]


def test_existing_files_are_kept_and_nothing_is_written_partially(folder, tmp_path):
    with pytest.raises(UsageError, match="new or empty folder"):
        write_digit_scenes(folder)
    with pytest.raises(UsageError, match=r"count: .*1.*0"):
        write_digit_scenes(tmp_path / "new", train=0)
    with pytest.raises(UsageError, match=r"max_digits: .*1.*0"):
        write_digit_scenes(tmp_path / "new", max_digits=0)
    assert list(tmp_path.iterdir()) == []


def test_invalid_arguments_raise(subtests):
    for split, count, image_size in [("test", 1, 64), ("train", 0, 64), ("train", 1, 31)]:
        with subtests.test(split=str(split)), pytest.raises(UsageError, match=r"expected"):
            next(generate_digit_scenes(split, count=count, image_size=image_size))
