"""Pictures in, boxes and maps out: answers lie in the pictures' own pixels, whatever they were seen with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.made import COLOURS, picture
from data.made_marked import HEADS, labels_of, write_marked_checkpoint
from van import Predictor
from van.checkpoint import load_checkpoint
from van.data.scenes import digit_scenes
from van.errors import PictureError, UsageError
from van.models.load import load
from van.results import Boxes, Masks

SIZES = ((64, 64), (150, 101), (37, 90), (64, 64), (1, 1))


@pytest.fixture(scope="module")
def predictors(tmp_path_factory) -> dict[str, Predictor]:
    folder = tmp_path_factory.mktemp("marked")
    paths = {task: write_marked_checkpoint(folder / f"{task}.safetensors", task) for task in HEADS}
    return {task: Predictor.load(path, device="cpu") for task, path in paths.items()}


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Scenes in sizes of their own, two of them alike, and a dot."""
    scenes = digit_scenes("val", count=len(SIZES), size_px=64)
    return [scene.picture.resize(size) for scene, size in zip(scenes, SIZES, strict=True)]


def assert_same(answer: Boxes | Masks, other: Boxes | Masks) -> None:
    """Float32 in another batch sums in another order: a few pixels on the edges of a map fall otherwise."""
    if isinstance(answer, Masks):
        assert isinstance(other, Masks)
        assert answer.ids.shape == other.ids.shape
        assert (answer.ids != other.ids).mean() < 0.005
        return
    assert isinstance(other, Boxes)
    assert [thing.label for thing in answer.found] == [thing.label for thing in other.found]
    for one, same in zip(answer.found, other.found, strict=True):
        assert one.score == pytest.approx(same.score, abs=1e-4)
        assert one.box == pytest.approx(same.box, abs=0.05)


@pytest.mark.parametrize("task", HEADS)
def test_a_batch_answers_as_its_pictures_do_one_by_one_and_in_order(predictors, pictures, task):
    if task in ("detect", "instances"):  # torchvision pads a batch to its largest picture, which is seen
        pictures = [one.resize((64, 64)) for one in pictures]
    together = predictors[task](pictures)
    assert [answer.name for answer in together] == [f"picture {place}" for place in range(len(SIZES))]
    for answer, one in zip(together, pictures, strict=True):
        assert_same(answer, predictors[task](one))
    assert any(len(getattr(answer, "found", getattr(answer, "regions", ()))) for answer in together)
    first, last = together[0], together[3]  # of one size: a wrong order could not pass
    with pytest.raises(AssertionError):
        assert_same(first, last)


@pytest.mark.parametrize("task", HEADS)
def test_answers_lie_in_the_picture_s_own_pixels(predictors, pictures, task):
    for one in pictures:
        answer = predictors[task](one)
        assert answer.labels == labels_of(task)
        size = answer.ids.shape if isinstance(answer, Masks) else answer.size
        assert size == (one.height, one.width)
        for thing in getattr(answer, "found", ()):
            x1, y1, x2, y2 = thing.box
            assert -1e-3 <= x1 <= x2 <= one.width + 1e-3
            assert -1e-3 <= y1 <= y2 <= one.height + 1e-3
            assert (thing.mask is None) == (task == "detect")
            assert thing.mask is None or thing.mask.shape == size


@pytest.mark.parametrize("task", HEADS)
def test_answers_are_those_of_the_network_on_the_preprocessed_picture(predictors, pictures, task):
    predictor = predictors[task]
    with torch.inference_mode():
        outputs = predictor.model([predictor.preprocess(pictures[1])])
    answer = predictor(pictures[1])
    if task == "segment":
        wanted = torch.nn.functional.interpolate(outputs[0][None], size=(101, 150), mode="bilinear")[0].argmax(0)
        assert (answer.ids != wanted.numpy()).mean() < 0.005
    elif task == "panoptic":
        assert set(outputs[0]) >= {"class_logits", "mask_logits"}
        assert all(region.score is None or region.score > 0.5 for region in answer.regions)
    else:
        seen = predictor.preprocess.seen((101, 150))
        scale = np.array([150 / seen[1], 101 / seen[0]] * 2)
        boxes = outputs[0]["boxes"].numpy() * scale
        kept = outputs[0]["scores"].numpy() >= 0.3
        np.testing.assert_allclose(sorted(t.box for t in answer.found), sorted(map(tuple, boxes[kept])), atol=0.05)


@pytest.mark.parametrize("task", HEADS)
def test_paths_bytes_and_pictures_give_one_answer(predictors, pictures, tmp_path, task):
    path = tmp_path / "a.png"
    pictures[1].save(path)
    answers = [predictors[task](one) for one in (path, str(path), path.read_bytes(), Image.open(path))]
    for answer in answers[1:]:
        assert_same(answer, answers[0])
    assert [answer.name for answer in answers] == [str(path), str(path), "picture 0", "picture 0"]


@pytest.mark.parametrize("task", HEADS)
def test_a_stream_gives_answers_and_errors_in_order(predictors, pictures, tmp_path, task):
    paths = [tmp_path / f"{place}.png" for place in range(len(pictures))]
    for path, one in zip(paths, pictures, strict=True):
        one.save(path)
    paths[1].write_text("no picture")
    found = list(predictors[task].stream([*paths, tmp_path / "gone.png"], batch_size=4))
    assert [isinstance(answer, PictureError) for answer in found] == [False, True, False, False, False, True]
    assert [answer.name for answer in found] == [str(path) for path in (*paths, tmp_path / "gone.png")]
    assert_same(found[2], predictors[task](pictures[2]))


@pytest.mark.parametrize(("size", "tile_px"), [((200, 130), 64), ((70, 300), 96), ((1, 1), 64), ((64, 64), 512)])
def test_a_window_gives_a_map_of_the_whole_picture(predictors, tmp_path, size, tile_px):
    loaded = load(write_marked_checkpoint(tmp_path / "segment.safetensors", "segment"))
    answer = Predictor(loaded, device="cpu", tile_px=tile_px)(picture(COLOURS["red"], 1, size))
    assert answer.ids.shape == (size[1], size[0])
    assert answer.labels == labels_of("segment")
    assert {region.label for region in answer.regions} <= set(answer.labels)
    assert (answer.ids >= 0).all()


def test_a_window_as_large_as_the_picture_sees_what_the_network_sees_at_that_size(predictors, pictures, tmp_path):
    """Scenes of 64 px are what the rule would make of them anyway."""
    loaded = load(write_marked_checkpoint(tmp_path / "segment.safetensors", "segment"))
    tiled = Predictor(loaded, device="cpu", tile_px=64)(pictures[0])
    assert_same(tiled, predictors["segment"](pictures[0]))
    smaller = Predictor(loaded, device="cpu", tile_px=32)(pictures[0])
    with pytest.raises(AssertionError):  # the control: a narrower view is another one
        assert_same(smaller, predictors["segment"](pictures[0]))


def test_several_scales_give_a_map_of_the_picture_s_size(predictors, pictures, tmp_path):
    loaded = load(write_marked_checkpoint(tmp_path / "segment.safetensors", "segment"))
    predictor = Predictor(loaded, device="cpu", multi_scale=True)
    for one, answer in zip(pictures[:3], predictor(pictures[:3]), strict=True):
        assert answer.ids.shape == (one.height, one.width)


@pytest.mark.slow
def test_a_large_picture_is_mapped_through_a_window(tmp_path):
    loaded = load(write_marked_checkpoint(tmp_path / "segment.safetensors", "segment", short_px=512))
    large = picture(COLOURS["blue"], 1, (1500, 1000))
    for more in ({}, {"tile_px": 512}):
        answer = Predictor(loaded, device="cpu", **more)(large)
        assert answer.ids.shape == (1000, 1500)
        assert {region.label for region in answer.regions} <= set(labels_of("segment"))


@pytest.mark.parametrize("task", ["segment", "panoptic"])
def test_a_least_score_is_for_boxes(tmp_path, task):
    path = write_marked_checkpoint(tmp_path / "map.safetensors", task)
    with pytest.raises(UsageError, match=f"min_score is for networks that give boxes; this one's task is {task}"):
        Predictor.load(path, min_score=0.5)


def test_a_least_score_of_one_s_own_replaces_the_stored_one(tmp_path, pictures):
    path: Path = write_marked_checkpoint(tmp_path / "boxes.safetensors", "detect")
    scores = [thing.score for thing in Predictor.load(path, min_score=0.0)(pictures[0]).found]
    assert min(scores) < 0.3 < max(scores)
    assert [thing.score for thing in Predictor.load(path)(pictures[0]).found] == [s for s in scores if s >= 0.3]
    assert load_checkpoint(path).task_options["category_ids"][0] == 1
    (first, *_) = Predictor.load(path)(pictures[0]).to_coco(7)
    assert first["image_id"] == 7
    assert 1 <= first["category_id"] <= 10


def test_a_network_that_sees_whole_pictures_is_no_classifier(predictors, tmp_path):
    loaded = load(write_marked_checkpoint(tmp_path / "detect.safetensors", "detect"))
    with pytest.raises(UsageError, match="van_b0 was trained to detect; wanted a network that classifies"):
        loaded.want_classifier()
    with pytest.raises(UsageError, match="--tile-px and --multi-scale are for semantic segmentation"):
        Predictor(loaded, tile_px=64)
