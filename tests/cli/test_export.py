"""``van export``: what is kept answers as PyTorch does, what does not is not kept, and van predict reads it."""

import csv
import io
import json

import onnx
import pytest

from export.made import classifier, write_checkpoint
from van.export.formats import open_session
from van.export.header import file_sha256
from van.predict import Predictor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network of one block a stage, 32 px."""
    return write_checkpoint(classifier(), tmp_path_factory.mktemp("tiny") / "best.safetensors")


def test_an_export_prints_what_it_wrote_and_how_far_it_is_from_pytorch(van, checkpoint, colours, tmp_path):
    out = tmp_path / "new" / "colours.onnx"
    ran = van("export", checkpoint, "--out", out, "--pictures", colours / "val", "--json")
    assert (ran.status, ran.err) == (0, "")
    printed = json.loads(ran.out)
    assert (printed["task"], printed["format"], printed["precision"]) == ("classify", "onnx", "float32")
    assert printed["inputs"] == {"pictures": [1, 3, 32, 32]}
    assert printed["bytes"] == out.stat().st_size
    assert 0 < printed["verification"]["relative"] < 1e-4
    assert printed["verification"]["pictures"] == 9
    assert [each.name for each in out.parent.iterdir()] == ["colours.onnx"]
    assert open_session(out).header.source == file_sha256(checkpoint)
    onnx.checker.check_model(out, full_check=True)
    answers = [van("predict", model, colours / "val", "--csv").out for model in (checkpoint, out)]
    plain, read = ([row[:3] for row in csv.reader(io.StringIO(answer))] for answer in answers)
    assert len(plain) == 1 + 9 * 3
    assert plain == read


def test_without_pictures_made_up_ones_serve_and_that_is_said(van, checkpoint, tmp_path):
    out = tmp_path / "colours.xml"
    ran = van("export", checkpoint, "--format", "openvino", "--out", out, "--half", "--dynamic", "--size-px", 48)
    assert ran.status == 0
    assert "answers are compared on 4 made-up ones" in ran.err
    assert "OpenVINO computes in float32" in ran.err or "OpenVINO computes in bfloat16" in ran.err  # as it is faster
    assert "colours.xml: openvino (OpenVINO IR from ai.onnx 20), " in ran.out
    assert "float16, pictures any x 3 x 48 x 48" in ran.out
    assert "as PyTorch on 4 pictures: largest difference" in ran.out
    assert sorted(each.name for each in tmp_path.iterdir()) == ["colours.bin", "colours.xml"]


def test_a_file_out_of_tolerance_is_status_1_and_is_not_kept(van, checkpoint, colours, tmp_path):
    out = tmp_path / "colours.onnx"
    ran = van("export", checkpoint, "--out", out, "--pictures", colours / "val", "--tolerance", "1e-12")
    assert (ran.status, ran.out) == (1, "")
    assert "colours.onnx was not written: on 9 pictures it differs from PyTorch by" in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_map_network_takes_the_size_of_the_first_picture_and_says_so(van, marked, scenes, tmp_path):
    out = tmp_path / "scenes.onnx"
    pictures = scenes / "ade" / "images" / "validation"
    ran = van("export", marked("segment"), "--out", out, "--pictures", pictures)
    assert ran.status == 0
    assert "the file takes pictures that are seen as 64 x 64 only; --dynamic frees rows and columns" in ran.err
    assert "100.0% of the answers agree" in ran.out


@pytest.mark.slow
def test_the_regions_of_an_exported_panoptic_network_are_those_of_its_checkpoint(van, marked, scenes, tmp_path):
    checkpoint, out, held_out = marked("panoptic"), tmp_path / "scenes.onnx", scenes / "coco" / "val"
    ran = van("export", checkpoint, "--out", out, "--pictures", held_out)
    assert ran.status == 0
    assert "the session cuts the masks to the picture in Python" in ran.err
    assert "100.0% of the answers agree" in ran.out
    paths = sorted(held_out.iterdir())
    for found, right in zip(Predictor.load(out)(paths), Predictor.load(checkpoint, device="cpu")(paths), strict=True):
        assert len(set(right.ids.flat)) > 1  # some pixels belong to a region, some to none
        assert (found.ids != right.ids).mean() < 1e-3  # a pixel where two masks are alike
        assert [region[:3] for region in found.regions] == [region[:3] for region in right.regions]
    ran = van("predict", out, paths[0], "--json")
    record = json.loads(ran.out)
    assert ran.status == 0
    assert [region["label"] for region in record["regions"]] == [
        region.label for region in Predictor.load(out)(paths[0]).regions
    ]


@pytest.mark.slow
def test_the_things_of_an_exported_mask_rcnn_are_those_of_its_checkpoint_on_any_canvas(van, marked, scenes, tmp_path):
    checkpoint, out, held_out = marked("instances"), tmp_path / "scenes.onnx", scenes / "coco" / "val"
    ran = van("export", checkpoint, "--out", out, "--pictures", held_out, "--dynamic")
    assert ran.status == 0
    assert "the session leaves out low scores in Python and enlarges the masks" in ran.err
    assert "pictures 1 x 3 x any x any" in ran.out
    assert "100.0% of the answers agree" in ran.out
    paths = sorted(held_out.iterdir())
    for found, right in zip(Predictor.load(out)(paths), Predictor.load(checkpoint, device="cpu")(paths), strict=True):
        assert len(right.found) > 5
        for ours, theirs in zip(found.found, right.found, strict=True):
            assert (ours.label, ours.score) == (theirs.label, pytest.approx(theirs.score, abs=1e-4))
            assert ours.box == pytest.approx(theirs.box, abs=1e-2)
            assert (ours.mask != theirs.mask).mean() < 1e-3
    ran = van("predict", out, paths[0], "--json")
    assert ran.status == 0
    assert len(json.loads(ran.out)["things"]) == len(Predictor.load(out)(paths[0]).found)


def test_what_cannot_be_exported_is_status_2_with_the_reason(van, marked, tmp_path):
    ran = van("export", marked("panoptic"), "--out", tmp_path / "scenes.onnx", "--dynamic")
    assert (ran.status, ran.out) == (2, "")
    assert "mask2former cannot be exported with free sizes" in ran.err
    assert "leave out --dynamic" in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--out a.xml", "--out is a.xml; wanted a name ending in .onnx"),
        ("--out a.onnx --format openvino", "--out is a.onnx; wanted a name ending in .xml"),
        ("--out a.onnx --tolerance 0", "--tolerance is 0.0; wanted more than 0 and at most 1"),
        ("--out a.onnx --size-px 0", "--size-px is 0; wanted at least 1"),
        ("--out a.onnx --dynamic --batch-size 2", "--batch-size is for files without --dynamic"),
        ("--out a.onnx --int8", "--int8 and --calibrate FOLDER belong together"),
        ("--out a.onnx --int8 --calibrate .", "--int8 is for --format openvino; --format is onnx"),
        ("--out a.xml --format openvino --int8 --calibrate . --half", "--int8 and --half exclude each other"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_loaded(van, flags, said):
    ran = van("export", "nowhere.safetensors", *flags.split())
    assert ran.status == 2
    assert said in ran.err
