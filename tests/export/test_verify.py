"""Differences between a file and the network are detected, named, and the file is not kept."""

import dataclasses
import math
import re

import pytest
import torch

from export.networks import build_classifier, build_with_head, export_file, images, rewrite_header
from van.errors import CheckpointError, ShapeError, UsageError
from van.export.formats import FORMATS, open_session
from van.export.verify import TOLERANCES, Verification, match_detections, synthetic_images, verify, write_verified
from van.export.writing import ExportOptions

ONNX = FORMATS["onnx"]
DYNAMIC = ExportOptions(dynamic=True)


def test_a_correct_file_is_well_within_its_tolerance(network, onnx_file, xml_file):
    for path in (onnx_file, xml_file):
        verification = verify(open_session(path, threads=1), network, images())
        assert verification.is_within(TOLERANCES["float32"])
        assert 0 < verification.relative_diff < 1e-5
        assert (verification.agreement, verification.class_names_match, verification.num_images) == (1.0, True, 3)
        assert verification.to_dict()["num_images"] == 3


def test_a_changed_weight_is_detected(network, onnx_file):
    """A layer scale of one block changes by 1 %, which changes no predicted class here."""
    changed = build_classifier()
    changed.network.load_state_dict(network.network.state_dict())
    with torch.no_grad():
        changed.network.get_parameter("block4.0.layer_scale_1").mul_(1.01)
    verification = verify(open_session(onnx_file, threads=1), changed, images())
    assert verification.agreement == 1.0
    assert not verification.is_within(TOLERANCES["float32"])


def test_a_different_preprocessing_in_the_file_is_detected(network, onnx_copy):
    rule = network.preprocess
    for other in ({"mean": (0.5, 0.5, 0.51)}, {"interpolation": "bilinear"}, {"crop_fraction": 0.85}):
        rewrite_header(onnx_copy, preprocess=dataclasses.replace(rule, **other))
        assert not verify(open_session(onnx_copy, threads=1), network, images()).is_within(TOLERANCES["float32"])


def test_swapped_class_names_are_detected_with_equal_outputs(network, onnx_copy):
    rewrite_header(onnx_copy, class_names=network.class_names[::-1])
    verification = verify(open_session(onnx_copy, threads=1), network, images())
    assert verification.relative_diff < 1e-5
    assert not verification.class_names_match
    assert not verification.is_within(1.0)


def test_non_finite_outputs_have_an_infinite_difference(network, onnx_file):
    session = open_session(onnx_file, threads=1)
    broken = build_classifier()
    with torch.no_grad():
        broken.network.get_parameter("head.bias").fill_(math.nan)
    verification = verify(session, broken, images(1))
    assert verification.relative_diff == math.inf
    assert not verification.is_within(1.0)


def test_detections_are_matched_by_iou_and_class():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 0, 60, 10]])
    expected = {"boxes": boxes, "labels": torch.tensor([0, 1, 2]), "scores": torch.tensor([0.9, 0.8, 0.1])}
    assert match_detections(expected, expected, 100) == (0.0, 0.0, 1.0)
    moved = {**expected, "boxes": boxes + torch.tensor([0.1, 0, 0.1, 0])}
    assert match_detections(moved, expected, 100) == pytest.approx((0.0, 0.001, 1.0), abs=1e-6)
    renamed = {**expected, "labels": torch.tensor([0, 2, 2])}
    assert match_detections(renamed, expected, 100)[2] == 0.5  # one of the two with a high score, in both directions
    nothing = {name: values[:0] for name, values in expected.items()}
    assert match_detections(nothing, expected, 100)[2] == 0.0
    assert match_detections(nothing, nothing, 100)[2] == 1.0


@pytest.mark.slow
def test_detectors_are_compared_before_and_after_post_processing(tmp_path):
    loaded = build_with_head("retinanet")
    path = export_file(loaded, tmp_path, input_size=(64, 64))
    verification = verify(open_session(path, threads=1), loaded, images(2, (64, 64)))
    assert verification.is_within(TOLERANCES["float32"])
    with torch.no_grad():
        loaded.network.get_parameter("detector.head.classification_head.cls_logits.bias").add_(0.01)
    assert not verify(open_session(path, threads=1), loaded, images(2, (64, 64))).is_within(TOLERANCES["float32"])
    with pytest.raises(ShapeError, match=r"3 x 64 x 64.*3 x 64 x"):
        verify(open_session(path, threads=1), loaded, images(1, (64, 100)))


def test_verification_without_images_is_an_error(network, onnx_file):
    with pytest.raises(UsageError, match=r"images.*1.*0"):
        verify(open_session(onnx_file, threads=1), network, [])


def test_only_the_verified_files_are_left(network, tmp_path):
    path = tmp_path / "new" / "network.xml"
    verification = write_verified(
        network, path, FORMATS["openvino"], options=ExportOptions(image_size=48), images=images()
    )
    assert isinstance(verification, Verification)
    assert sorted(each.name for each in path.parent.iterdir()) == ["network.bin", "network.xml"]
    assert open_session(path, threads=1).header.preprocess.image_size == 48


def test_a_file_out_of_tolerance_leaves_the_old_one_unchanged(network, tmp_path):
    path = tmp_path / "network.onnx"
    path.write_text("old")
    with pytest.raises(CheckpointError, match=r"network\.onnx.*3 images.*1e-12"):
        write_verified(network, path, ONNX, options=DYNAMIC, images=images(), tolerance=1e-12)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_named(network, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"\.onnx.*network\.xml"):
        write_verified(network, tmp_path / "network.xml", ONNX, options=DYNAMIC, images=images())
    (tmp_path / "network.bin").mkdir()
    xml = tmp_path / "network.xml"
    with pytest.raises(CheckpointError, match=r"network\.bin"):
        write_verified(network, xml, FORMATS["openvino"], options=DYNAMIC, images=images())
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CheckpointError, match=re.escape(str(file))):
        write_verified(network, file / "network.onnx", ONNX, options=DYNAMIC, images=images())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "network.bin"]


FULL_DISK = """
import resource, sys
from pathlib import Path
import van.export.onnx, onnxruntime, openvino, onnxscript
from export.networks import build_classifier, images
from van.errors import CheckpointError
from van.export.formats import FORMATS
from van.export.verify import write_verified
from van.export.writing import ExportOptions
folder, network = Path(sys.argv[1]), build_classifier()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
for name in ("onnx", "openvino"):
    try:
        path = folder / f"network{FORMATS[name].suffix}"
        write_verified(network, path, FORMATS[name], options=ExportOptions(), images=images())
    except CheckpointError as error:
        print(str(folder) in str(error))
print([path.name for path in folder.iterdir()])
"""


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_leaves_no_file(run_python, tmp_path):
    printed = run_python(FULL_DISK, str(tmp_path), PYTHONPATH="tests").splitlines()
    assert [line for line in printed if not line.startswith("[torch.onnx]")] == ["True", "True", "[]"]


def test_synthetic_images_are_reproducible_and_differ_from_each_other():
    first, again = synthetic_images(3), synthetic_images(3)
    assert [one.tobytes() for one in first] == [one.tobytes() for one in again]
    assert len({one.size for one in first}) == 3
    assert {one.size for one in synthetic_images(2, (30, 40))} == {(40, 30)}
