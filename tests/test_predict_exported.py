"""A predictor of an exported file predicts as that of its checkpoint."""

from pathlib import Path

import numpy as np
import pytest

from explain.small_models import image
from export.networks import build_classifier, build_with_head, export_file, write_checkpoint
from van.errors import UsageError
from van.model import Model
from van.predict import Predictor

IMAGES = [image(80, 70, seed=1), image(64, 64, seed=2), image(50, 91, seed=3)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(build_classifier(), tmp_path_factory.mktemp("small") / "best.safetensors")


@pytest.fixture(scope="module")
def onnx_file(checkpoint, tmp_path_factory) -> Path:
    return export_file(Model.load(checkpoint), tmp_path_factory.mktemp("onnx"))


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_class_names_order_and_scores_equal_those_of_the_checkpoint(checkpoint, onnx_file, format_, tmp_path):
    path = onnx_file if format_ == "onnx" else export_file(Model.load(checkpoint), tmp_path, format_)
    exported = Predictor(Model.load(path, threads=1))
    original = Predictor(Model.load(checkpoint), device="cpu")
    assert (exported.class_names, exported.preprocess) == (original.class_names, original.preprocess)
    for ours, theirs in zip(exported(IMAGES), original(IMAGES), strict=True):
        assert ours.class_names == theirs.class_names
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-6)
    assert exported(IMAGES[0]).top(1)[0].label == original(IMAGES[0]).top(1)[0].label


def test_the_model_of_the_predictor_is_the_session(onnx_file):
    predictor = Predictor(Model.load(onnx_file, threads=1))
    assert predictor.model.network.header.class_names == predictor.class_names
    assert str(predictor.device) == "cpu"
    predictor.model.network.close()
    with pytest.raises(UsageError, match="session"):
        predictor(IMAGES[0])


def test_options_for_another_task_or_source_are_rejected(checkpoint, onnx_file):
    with pytest.raises(UsageError, match="min_score"):
        Predictor(Model.load(onnx_file), min_score=0.5)
    with pytest.raises(UsageError, match="--tile-size"):
        Predictor(Model.load(onnx_file), tile_size=64)
    with pytest.raises(UsageError, match=r"threads.*best\.safetensors.*2"):
        Model.load(checkpoint, threads=2)


def test_detections_equal_those_of_the_checkpoint_for_every_min_score(tmp_path):
    checkpoint = write_checkpoint(build_with_head("retinanet"), tmp_path / "best.safetensors")
    path = export_file(Model.load(checkpoint), tmp_path, input_size=(64, 64))
    inputs = [image(64, 64, seed=seed) for seed in range(2)]
    scores = sorted(
        detection.score
        for prediction in Predictor(Model.load(checkpoint), device="cpu")(inputs)
        for detection in prediction.detections
    )
    middle = (scores[len(scores) // 2 - 1] + scores[len(scores) // 2]) / 2
    for options, count in (({}, len(scores)), ({"min_score": middle}, len(scores) // 2)):
        exported = Predictor(Model.load(path, threads=1), **options)(inputs)
        original = Predictor(Model.load(checkpoint), device="cpu", **options)(inputs)
        assert sum(len(prediction.detections) for prediction in exported) == count > 1
        for ours, theirs in zip(exported, original, strict=True):
            assert [detection.label for detection in ours.detections] == [
                detection.label for detection in theirs.detections
            ]
            assert ours.category_ids == theirs.category_ids
            for one, other in zip(ours.detections, theirs.detections, strict=True):
                assert one.score == pytest.approx(other.score, abs=1e-4)
                assert one.box == pytest.approx(other.box, abs=1e-2)
    assert "in Python" in Model.load(path).notes[0]


@pytest.mark.slow
def test_a_file_for_one_size_segments_larger_images_in_tiles(tmp_path):
    checkpoint = write_checkpoint(build_with_head("semantic_fpn"), tmp_path / "best.safetensors")
    path = export_file(Model.load(checkpoint), tmp_path, input_size=(64, 64))
    for options, inputs in (({"tile_size": 64}, IMAGES[:1]), ({}, IMAGES[1:2])):
        (ours,) = Predictor(Model.load(path, threads=1), **options)(inputs)
        (theirs,) = Predictor(Model.load(checkpoint), device="cpu", **options)(inputs)
        assert len(np.unique(theirs.segment_ids)) > 1
        assert (ours.segment_ids == theirs.segment_ids).mean() > 0.999  # near ties may fall either way


def test_load_reads_checkpoints_and_exported_files(checkpoint, onnx_file):
    exported, original = Model.load(onnx_file), Model.load(checkpoint)
    assert (exported.name, exported.task, exported.class_names) == (original.name, original.task, original.class_names)
    assert exported.options == {name: list(value) for name, value in original.options.items()}
