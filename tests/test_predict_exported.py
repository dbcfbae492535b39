"""A predictor of an exported file answers as the one of its checkpoint does."""

from pathlib import Path

import numpy as np
import pytest

import van
from explain.small import picture
from export.made import classifier, with_head, write_checkpoint, written
from van.errors import UsageError
from van.models.load import load
from van.predict import load_network

PICTURES = [picture(80, 70, seed=1), picture(64, 64, seed=2), picture(50, 91, seed=3)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(classifier(), tmp_path_factory.mktemp("small") / "best.safetensors")


@pytest.fixture(scope="module")
def onnx_file(checkpoint, tmp_path_factory) -> Path:
    return written(load(checkpoint), tmp_path_factory.mktemp("onnx"))


@pytest.mark.parametrize("format_", ["onnx", "openvino"])
def test_classes_have_the_names_the_order_and_the_probabilities_of_the_checkpoint(
    checkpoint, onnx_file, format_, tmp_path
):
    path = onnx_file if format_ == "onnx" else written(load(checkpoint), tmp_path, format_)
    exported = van.Predictor.load(path, threads=1, device="cpu")
    original = van.Predictor.load(checkpoint, device="cpu")
    assert (exported.labels, exported.preprocess) == (original.labels, original.preprocess)
    for ours, theirs in zip(exported(PICTURES), original(PICTURES), strict=True):
        assert ours.labels == theirs.labels
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-6)
    assert exported(PICTURES[0]).top(1)[0].label == original(PICTURES[0]).top(1)[0].label


def test_the_model_behind_it_is_the_session(onnx_file):
    predictor = van.Predictor.load(onnx_file, threads=1)
    assert predictor.model.header.labels == predictor.labels
    assert str(predictor.device) == "cpu"
    predictor.model.close()
    with pytest.raises(UsageError, match="the session is closed"):
        predictor(PICTURES[0])


def test_options_that_are_not_for_its_task_or_for_a_checkpoint_are_refused(checkpoint, onnx_file):
    with pytest.raises(UsageError, match="min_score is for networks that give boxes"):
        van.Predictor.load(onnx_file, min_score=0.5)
    with pytest.raises(UsageError, match="are for semantic segmentation"):
        van.Predictor.load(onnx_file, tile_px=64)
    with pytest.raises(UsageError, match=r"threads is 2, and .* is no exported file"):
        van.Predictor.load(checkpoint, threads=2)


def test_things_have_the_boxes_of_the_checkpoint_and_min_score_works(tmp_path):
    checkpoint = write_checkpoint(with_head("retinanet"), tmp_path / "best.safetensors")
    path = written(load(checkpoint), tmp_path, seen=(64, 64))
    seen = [picture(64, 64, seed=seed) for seed in range(2)]
    scores = sorted(
        thing.score for answer in van.Predictor.load(checkpoint, device="cpu")(seen) for thing in answer.found
    )
    middle = (scores[len(scores) // 2 - 1] + scores[len(scores) // 2]) / 2
    for options, count in (({}, len(scores)), ({"min_score": middle}, len(scores) // 2)):
        exported = van.Predictor.load(path, threads=1, **options)(seen)
        original = van.Predictor.load(checkpoint, device="cpu", **options)(seen)
        assert sum(len(answer.found) for answer in exported) == count > 1
        for ours, theirs in zip(exported, original, strict=True):
            assert [thing.label for thing in ours.found] == [thing.label for thing in theirs.found]
            assert ours.category_ids == theirs.category_ids
            for one, other in zip(ours.found, theirs.found, strict=True):
                assert one.score == pytest.approx(other.score, abs=1e-4)
                assert one.box == pytest.approx(other.box, abs=1e-2)
    assert "in Python" in van.Predictor.load(path).notes[0]


@pytest.mark.slow
def test_a_file_for_one_size_sees_larger_pictures_through_a_window_of_it(tmp_path):
    checkpoint = write_checkpoint(with_head("semantic_fpn"), tmp_path / "best.safetensors")
    path = written(load(checkpoint), tmp_path, seen=(64, 64))
    for options, seen in (({"tile_px": 64}, PICTURES[:1]), ({}, PICTURES[1:2])):
        (ours,) = van.Predictor.load(path, threads=1, **options)(seen)
        (theirs,) = van.Predictor.load(checkpoint, device="cpu", **options)(seen)
        assert len(np.unique(theirs.ids)) > 1
        assert (ours.ids == theirs.ids).mean() > 0.999  # near ties may fall either way


def test_load_network_reads_both_kinds(checkpoint, onnx_file):
    exported, original = load_network(onnx_file), load_network(checkpoint)
    assert (exported.name, exported.task, exported.labels) == (original.name, original.task, original.labels)
    assert exported.options == {name: list(value) for name, value in original.options.items()}
