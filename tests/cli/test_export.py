"""``van export``: files that predict as PyTorch are kept, others are not, and van predict reads them."""

import csv
import io
import json

import onnx
import pytest

from export.networks import build_classifier, write_checkpoint
from van.export.formats import open_session
from van.export.header import file_sha256
from van.model import Model
from van.predict import Predictor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Return a network with one block per stage for images of 32 px."""
    return write_checkpoint(build_classifier(), tmp_path_factory.mktemp("tiny") / "best.safetensors")


def test_an_export_prints_its_properties_and_the_difference_from_pytorch(van, checkpoint, colors, tmp_path):
    out = tmp_path / "new" / "colors.onnx"
    ran = van("export", checkpoint, "--out", out, "--images", colors / "val", "--json")
    assert (ran.status, ran.err) == (0, "")
    printed = json.loads(ran.out)
    assert (printed["task"], printed["format"], printed["precision"]) == ("classify", "onnx", "float32")
    assert printed["inputs"] == {"images": [1, 3, 32, 32]}
    assert printed["bytes"] == out.stat().st_size
    assert 0 < printed["verification"]["relative_diff"] < 1e-4
    assert printed["verification"]["num_images"] == 9
    assert [each.name for each in out.parent.iterdir()] == ["colors.onnx"]
    assert open_session(out).header.source == file_sha256(checkpoint)
    onnx.checker.check_model(out, full_check=True)
    outputs = [van("predict", model, colors / "val", "--csv").out for model in (checkpoint, out)]
    original, exported = ([row[:3] for row in csv.reader(io.StringIO(output))] for output in outputs)
    assert len(original) == 1 + 9 * 3
    assert original == exported


def test_without_images_the_verification_uses_synthetic_ones_and_logs_it(van, checkpoint, tmp_path):
    out = tmp_path / "colors.xml"
    ran = van("export", checkpoint, "--format", "openvino", "--out", out, "--half", "--dynamic", "--image-size", 48)
    assert ran.status == 0
    assert "4 synthetic images" in ran.err
    assert (
        "OpenVINO computes in float32" in ran.err or "OpenVINO computes in bfloat16" in ran.err
    )  # whichever is faster
    assert "colors.xml: openvino (OpenVINO IR from ai.onnx 20), " in ran.out
    assert "float16, images any x 3 x 48 x 48" in ran.out
    assert "PyTorch on 4 images: maximum absolute difference" in ran.out
    assert sorted(each.name for each in tmp_path.iterdir()) == ["colors.bin", "colors.xml"]


def test_a_file_out_of_tolerance_is_status_1_and_is_not_kept(van, checkpoint, colors, tmp_path):
    out = tmp_path / "colors.onnx"
    ran = van("export", checkpoint, "--out", out, "--images", colors / "val", "--tolerance", "1e-12")
    assert (ran.status, ran.out) == (1, "")
    assert all(fact in ran.err for fact in ("colors.onnx", "9 images", "1e-12"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_segmentation_network_is_exported_for_the_size_of_the_first_image(van, dense_checkpoint, scenes, tmp_path):
    out = tmp_path / "scenes.onnx"
    images = scenes / "ade" / "images" / "validation"
    ran = van("export", dense_checkpoint("segment"), "--out", out, "--images", images)
    assert ran.status == 0
    assert all(fact in ran.err for fact in ("64 x 64", "--dynamic"))
    assert "100.0% equal predictions" in ran.out


@pytest.mark.slow
def test_the_segments_of_an_exported_panoptic_network_equal_those_of_its_checkpoint(
    van, dense_checkpoint, scenes, tmp_path
):
    checkpoint, out, val_folder = dense_checkpoint("panoptic"), tmp_path / "scenes.onnx", scenes / "coco" / "val"
    ran = van("export", checkpoint, "--out", out, "--images", val_folder)
    assert ran.status == 0
    assert "in Python" in ran.err
    assert "100.0% equal predictions" in ran.out
    paths = sorted(val_folder.iterdir())
    for exported, original in zip(
        Predictor(Model.load(out))(paths), Predictor(Model.load(checkpoint), device="cpu")(paths), strict=True
    ):
        assert len(set(original.segment_ids.flat)) > 1  # some pixels belong to a segment, some to none
        assert (exported.segment_ids != original.segment_ids).mean() < 1e-3  # pixels where two masks are nearly equal
        assert [segment[:3] for segment in exported.segments] == [segment[:3] for segment in original.segments]
    ran = van("predict", out, paths[0], "--json")
    record = json.loads(ran.out)
    assert ran.status == 0
    assert [segment["label"] for segment in record["segments"]] == [
        segment.label for segment in Predictor(Model.load(out))(paths[0]).segments
    ]


@pytest.mark.slow
def test_the_detections_of_an_exported_mask_rcnn_equal_those_of_its_checkpoint(van, dense_checkpoint, scenes, tmp_path):
    checkpoint, out, val_folder = dense_checkpoint("instances"), tmp_path / "scenes.onnx", scenes / "coco" / "val"
    ran = van("export", checkpoint, "--out", out, "--images", val_folder, "--dynamic")
    assert ran.status == 0
    assert "in Python" in ran.err
    assert "images 1 x 3 x any x any" in ran.out
    assert "100.0% equal predictions" in ran.out
    paths = sorted(val_folder.iterdir())
    for exported, original in zip(
        Predictor(Model.load(out))(paths), Predictor(Model.load(checkpoint), device="cpu")(paths), strict=True
    ):
        assert len(original.detections) > 5
        for ours, theirs in zip(exported.detections, original.detections, strict=True):
            assert (ours.label, ours.score) == (theirs.label, pytest.approx(theirs.score, abs=1e-4))
            assert ours.box == pytest.approx(theirs.box, abs=1e-2)
            assert (ours.mask != theirs.mask).mean() < 1e-3
    ran = van("predict", out, paths[0], "--json")
    assert ran.status == 0
    assert len(json.loads(ran.out)["detections"]) == len(Predictor(Model.load(out))(paths[0]).detections)


def test_an_unsupported_export_is_status_2_with_the_reason(van, dense_checkpoint, tmp_path):
    ran = van("export", dense_checkpoint("panoptic"), "--out", tmp_path / "scenes.onnx", "--dynamic")
    assert (ran.status, ran.out) == (2, "")
    assert "mask2former" in ran.err
    assert "--dynamic" in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        ("--out a.xml", ("--out", ".onnx", "a.xml")),
        ("--out a.onnx --format openvino", ("--out", ".xml", "a.onnx")),
        ("--out a.onnx --tolerance 0", ("--tolerance", "0.0")),
        ("--out a.onnx --image-size 0", ("--image-size", "1", "0")),
        ("--out a.onnx --dynamic --batch-size 2", ("--batch-size", "--dynamic")),
        ("--out a.onnx --int8", ("--int8", "--calibration-data")),
        ("--out a.onnx --int8 --calibration-data .", ("--int8", "openvino", "onnx")),
        ("--out a.xml --format openvino --int8 --calibration-data . --half", ("--int8", "--half")),
    ],
)
def test_invalid_flags_are_rejected_before_anything_is_loaded(van, flags, facts):
    ran = van("export", "nowhere.safetensors", *flags.split())
    assert ran.status == 2
    assert all(fact in ran.err for fact in facts)
