"""Predictions of detectors and segmenters: in pixels of the original image, at any input size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.synthetic import COLORS, make_image
from datasets.synthetic_annotated import HEADS, task_class_names, write_dense_checkpoint
from van.checkpoint import load_checkpoint
from van.datasets.scenes import generate_digit_scenes
from van.errors import ImageError, UsageError
from van.model import Model
from van.predict import Predictor
from van.predictions import Detections, Segmentation

SIZES = ((64, 64), (150, 101), (37, 90), (64, 64), (1, 1))


@pytest.fixture(scope="module")
def predictors(tmp_path_factory) -> dict[str, Predictor]:
    folder = tmp_path_factory.mktemp("dense")
    paths = {task: write_dense_checkpoint(folder / f"{task}.safetensors", task) for task in HEADS}
    return {task: Predictor(Model.load(path), device="cpu") for task, path in paths.items()}


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Return scenes in different sizes, two of them equal, and an image of one pixel."""
    scenes = generate_digit_scenes("val", count=len(SIZES), image_size=64)
    return [scene.image.resize(size) for scene, size in zip(scenes, SIZES, strict=True)]


def assert_same(prediction: Detections | Segmentation, other: Detections | Segmentation) -> None:
    """Another batch size sums in another order: a few pixels on the edges of a map may differ."""
    if isinstance(prediction, Segmentation):
        assert isinstance(other, Segmentation)
        assert prediction.segment_ids.shape == other.segment_ids.shape
        assert (prediction.segment_ids != other.segment_ids).mean() < 0.005
        return
    assert isinstance(other, Detections)
    assert [detection.label for detection in prediction.detections] == [
        detection.label for detection in other.detections
    ]
    for ours, theirs in zip(prediction.detections, other.detections, strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)
        assert ours.box == pytest.approx(theirs.box, abs=0.05)


def test_a_batch_gives_the_predictions_of_its_images_in_order(subtests, predictors, images):
    for task in HEADS:
        with subtests.test(task=str(task)):
            batch = predictors[task](images)
            assert [prediction.name for prediction in batch] == [f"image {place}" for place in range(len(SIZES))]
            for prediction, one in zip(batch, images, strict=True):
                assert_same(prediction, predictors[task](one))
            assert any(
                len(getattr(prediction, "detections", getattr(prediction, "segments", ()))) for prediction in batch
            )
            first, last = batch[0], batch[3]  # of equal size, so that a wrong order fails
            with pytest.raises(AssertionError):
                assert_same(first, last)


def test_predictions_are_in_pixels_of_the_original_image(subtests, predictors, images):
    for task in HEADS:
        with subtests.test(task=str(task)):
            for one in images:
                prediction = predictors[task](one)
                assert prediction.class_names == task_class_names(task)
                size = prediction.segment_ids.shape if isinstance(prediction, Segmentation) else prediction.image_size
                assert size == (one.height, one.width)
                for detection in getattr(prediction, "detections", ()):
                    x1, y1, x2, y2 = detection.box
                    assert -1e-3 <= x1 <= x2 <= one.width + 1e-3
                    assert -1e-3 <= y1 <= y2 <= one.height + 1e-3
                    assert (detection.mask is None) == (task == "detect")
                    assert detection.mask is None or detection.mask.shape == size


def test_predictions_equal_the_network_on_the_preprocessed_image(subtests, predictors, images):
    for task in HEADS:
        with subtests.test(task=str(task)):
            predictor = predictors[task]
            with torch.inference_mode():
                outputs = predictor.model.network([predictor.preprocess(images[1])])
            prediction = predictor(images[1])
            if task == "segment":
                expected = torch.nn.functional.interpolate(outputs[0][None], size=(101, 150), mode="bilinear")[
                    0
                ].argmax(0)
                assert (prediction.segment_ids != expected.numpy()).mean() < 0.005
            elif task == "panoptic":
                assert set(outputs[0]) >= {"class_logits", "mask_logits"}
                assert all(segment.score is None or segment.score > 0.5 for segment in prediction.segments)
            else:
                resized = predictor.preprocess.resized_size((101, 150))
                scale = np.array([150 / resized[1], 101 / resized[0]] * 2)
                boxes = outputs[0]["boxes"].numpy() * scale
                kept = outputs[0]["scores"].numpy() >= 0.3
                np.testing.assert_allclose(
                    sorted(t.box for t in prediction.detections), sorted(map(tuple, boxes[kept])), atol=0.05
                )


def test_paths_bytes_and_images_give_the_same_prediction(subtests, predictors, images, tmp_path_factory):
    for task in HEADS:
        with subtests.test(task=str(task)):
            tmp_path = tmp_path_factory.mktemp("case")
            path = tmp_path / "a.png"
            images[1].save(path)
            predictions = [predictors[task](one) for one in (path, str(path), path.read_bytes(), Image.open(path))]
            for prediction in predictions[1:]:
                assert_same(prediction, predictions[0])
            assert [prediction.name for prediction in predictions] == [str(path), str(path), "image 0", "image 0"]


def test_a_stream_yields_predictions_and_errors_in_order(subtests, predictors, images, tmp_path_factory):
    for task in HEADS:
        with subtests.test(task=str(task)):
            tmp_path = tmp_path_factory.mktemp("case")
            paths = [tmp_path / f"{place}.png" for place in range(len(images))]
            for path, one in zip(paths, images, strict=True):
                one.save(path)
            paths[1].write_text("no image")
            predictions = list(predictors[task].stream([*paths, tmp_path / "missing.png"], batch_size=4))
            assert [isinstance(prediction, ImageError) for prediction in predictions] == [
                False,
                True,
                False,
                False,
                False,
                True,
            ]
            assert [prediction.name for prediction in predictions] == [
                str(path) for path in (*paths, tmp_path / "missing.png")
            ]
            assert_same(predictions[2], predictors[task](images[2]))


def test_sliding_window_inference_returns_a_map_of_the_whole_image(subtests, predictors, tmp_path_factory):
    for size, tile_size in [((200, 130), 64), ((70, 300), 96), ((1, 1), 64), ((64, 64), 512)]:
        with subtests.test(size=str(size), tile_size=str(tile_size)):
            tmp_path = tmp_path_factory.mktemp("case")
            loaded = Model.load(write_dense_checkpoint(tmp_path / "segment.safetensors", "segment"))
            prediction = Predictor(loaded, device="cpu", tile_size=tile_size)(make_image(COLORS["red"], 1, size))
            assert prediction.segment_ids.shape == (size[1], size[0])
            assert prediction.class_names == task_class_names("segment")
            assert {segment.label for segment in prediction.segments} <= set(prediction.class_names)
            assert (prediction.segment_ids >= 0).all()


def test_a_tile_as_large_as_the_image_equals_inference_on_the_whole_image(predictors, images, tmp_path):
    """Preprocessing does not resize scenes of 64 px."""
    loaded = Model.load(write_dense_checkpoint(tmp_path / "segment.safetensors", "segment"))
    tiled = Predictor(loaded, device="cpu", tile_size=64)(images[0])
    assert_same(tiled, predictors["segment"](images[0]))
    smaller = Predictor(loaded, device="cpu", tile_size=32)(images[0])
    with pytest.raises(AssertionError):  # negative control: a smaller tile changes the prediction
        assert_same(smaller, predictors["segment"](images[0]))


def test_multi_scale_inference_returns_a_map_of_the_image_size(predictors, images, tmp_path):
    loaded = Model.load(write_dense_checkpoint(tmp_path / "segment.safetensors", "segment"))
    predictor = Predictor(loaded, device="cpu", multi_scale=True)
    for one, prediction in zip(images[:3], predictor(images[:3]), strict=True):
        assert prediction.segment_ids.shape == (one.height, one.width)


@pytest.mark.slow
def test_a_large_image_is_segmented_whole_and_in_tiles(tmp_path):
    loaded = Model.load(write_dense_checkpoint(tmp_path / "segment.safetensors", "segment", min_size=512))
    large = make_image(COLORS["blue"], 1, (1500, 1000))
    for options in ({}, {"tile_size": 512}):
        prediction = Predictor(loaded, device="cpu", **options)(large)
        assert prediction.segment_ids.shape == (1000, 1500)
        assert {segment.label for segment in prediction.segments} <= set(task_class_names("segment"))


def test_min_score_is_rejected_for_segmentation(subtests, tmp_path_factory):
    for task in ["segment", "panoptic"]:
        with subtests.test(task=str(task)):
            tmp_path = tmp_path_factory.mktemp("case")
            path = write_dense_checkpoint(tmp_path / "map.safetensors", task)
            with pytest.raises(UsageError, match=f"min_score.*{task}"):
                Predictor(Model.load(path), min_score=0.5)


def test_min_score_replaces_the_stored_threshold(tmp_path, images):
    path: Path = write_dense_checkpoint(tmp_path / "boxes.safetensors", "detect")
    scores = [detection.score for detection in Predictor(Model.load(path), min_score=0.0)(images[0]).detections]
    assert min(scores) < 0.3 < max(scores)
    assert [detection.score for detection in Predictor(Model.load(path))(images[0]).detections] == [
        s for s in scores if s >= 0.3
    ]
    assert load_checkpoint(path).task_options["category_ids"][0] == 1
    (first, *_) = Predictor(Model.load(path))(images[0]).to_coco(7)
    assert first["image_id"] == 7
    assert 1 <= first["category_id"] <= 10


def test_a_detector_is_rejected_for_tiles(predictors, tmp_path):
    loaded = Model.load(write_dense_checkpoint(tmp_path / "detect.safetensors", "detect"))
    with pytest.raises(UsageError, match="--tile-size"):
        Predictor(loaded, tile_size=64)
