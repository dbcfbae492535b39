"""What answers otherwise than the network is noticed, named, and not kept."""

import dataclasses
import math

import pytest
import torch

from export.made import classifier, pictures, with_head, with_header, written
from van.errors import CheckpointError, ShapeError, UsageError
from van.export.formats import FORMATS, open_session
from van.export.verify import TOLERANCES, Verification, _matched, made_pictures, verify, write_verified
from van.export.writing import ExportOptions

ONNX = FORMATS["onnx"]
DYNAMIC = ExportOptions(dynamic=True)


def test_a_good_file_is_within_its_tolerance_by_far(network, onnx_file, xml_file):
    for path in (onnx_file, xml_file):
        found = verify(open_session(path, threads=1), network, pictures())
        assert found.within(TOLERANCES["float32"])
        assert 0 < found.relative < 1e-5
        assert (found.agreement, found.same_labels, found.pictures) == (1.0, True, 3)
        assert found.to_dict()["pictures"] == 3


def test_a_changed_weight_is_noticed(network, onnx_file):
    """One layer scale of one block, off by a hundredth: less than would change any answer here."""
    changed = classifier()
    changed.model.load_state_dict(network.model.state_dict())
    with torch.no_grad():
        changed.model.get_parameter("block4.0.layer_scale_1").mul_(1.01)
    found = verify(open_session(onnx_file, threads=1), changed, pictures())
    assert found.agreement == 1.0
    assert not found.within(TOLERANCES["float32"])


def test_another_preprocessing_in_the_file_is_noticed(network, onnx_copy):
    rule = network.preprocess
    for other in ({"mean": (0.5, 0.5, 0.51)}, {"interpolation": "bilinear"}, {"crop_fraction": 0.85}):
        with_header(onnx_copy, preprocess=dataclasses.replace(rule, **other))
        assert not verify(open_session(onnx_copy, threads=1), network, pictures()).within(TOLERANCES["float32"])


def test_swapped_labels_are_noticed_though_every_number_is_right(network, onnx_copy):
    with_header(onnx_copy, labels=network.labels[::-1])
    found = verify(open_session(onnx_copy, threads=1), network, pictures())
    assert found.relative < 1e-5
    assert not found.same_labels
    assert not found.within(1.0)


def test_answers_that_are_no_numbers_are_infinitely_far(network, onnx_file):
    session = open_session(onnx_file, threads=1)
    broken = classifier()
    with torch.no_grad():
        broken.model.get_parameter("head.bias").fill_(math.nan)
    found = verify(session, broken, pictures(1))
    assert found.relative == math.inf
    assert not found.within(1.0)


def test_things_are_matched_by_place_and_name():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 0, 60, 10]])
    right = {"boxes": boxes, "labels": torch.tensor([0, 1, 2]), "scores": torch.tensor([0.9, 0.8, 0.1])}
    assert _matched(right, right, 100) == (0.0, 0.0, 1.0)
    moved = {**right, "boxes": boxes + torch.tensor([0.1, 0, 0.1, 0])}
    assert _matched(moved, right, 100) == pytest.approx((0.0, 0.001, 1.0), abs=1e-6)
    renamed = {**right, "labels": torch.tensor([0, 2, 2])}
    assert _matched(renamed, right, 100)[2] == 0.5  # of the two on either side that are worth a look
    nothing = {name: values[:0] for name, values in right.items()}
    assert _matched(nothing, right, 100)[2] == 0.0
    assert _matched(nothing, nothing, 100)[2] == 1.0


@pytest.mark.slow
def test_detectors_are_compared_before_and_after_boxes_are_made_of_their_outputs(tmp_path):
    loaded = with_head("retinanet")
    path = written(loaded, tmp_path, seen=(64, 64))
    found = verify(open_session(path, threads=1), loaded, pictures(2, (64, 64)))
    assert found.within(TOLERANCES["float32"])
    with torch.no_grad():
        loaded.model.get_parameter("detector.head.classification_head.cls_logits.bias").add_(0.01)
    assert not verify(open_session(path, threads=1), loaded, pictures(2, (64, 64))).within(TOLERANCES["float32"])
    with pytest.raises(ShapeError, match="exported for pictures of 3 x 64 x 64"):
        verify(open_session(path, threads=1), loaded, pictures(1, (64, 100)))


def test_without_pictures_nothing_can_be_said(network, onnx_file):
    with pytest.raises(UsageError, match="no pictures to compare"):
        verify(open_session(onnx_file, threads=1), network, [])


def test_a_good_file_is_moved_into_place_alone(network, tmp_path):
    path = tmp_path / "new" / "network.xml"
    found = write_verified(network, path, FORMATS["openvino"], options=ExportOptions(size_px=48), pictures=pictures())
    assert isinstance(found, Verification)
    assert sorted(each.name for each in path.parent.iterdir()) == ["network.bin", "network.xml"]
    assert open_session(path, threads=1).header.preprocess.size_px == 48


def test_what_is_out_of_tolerance_leaves_what_stood_there(network, tmp_path):
    path = tmp_path / "network.onnx"
    path.write_text("old")
    with pytest.raises(CheckpointError, match=r"was not written: on 3 pictures it differs from PyTorch by .* at most"):
        write_verified(network, path, ONNX, options=DYNAMIC, pictures=pictures(), tolerance=1e-12)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(network, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"wanted a name ending in \.onnx for onnx"):
        write_verified(network, tmp_path / "network.xml", ONNX, options=DYNAMIC, pictures=pictures())
    (tmp_path / "network.bin").mkdir()
    xml = tmp_path / "network.xml"
    with pytest.raises(CheckpointError, match=r"cannot write .*network\.bin: it is not a file"):
        write_verified(network, xml, FORMATS["openvino"], options=DYNAMIC, pictures=pictures())
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        write_verified(network, file / "network.onnx", ONNX, options=DYNAMIC, pictures=pictures())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "network.bin"]


FULL_DISK = """
import resource, sys
from pathlib import Path
import van.export.onnx, onnxruntime, openvino, onnxscript
from export.made import classifier, pictures
from van.errors import CheckpointError
from van.export.formats import FORMATS
from van.export.verify import write_verified
from van.export.writing import ExportOptions
folder, network = Path(sys.argv[1]), classifier()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
for name in ("onnx", "openvino"):
    try:
        path = folder / f"network{FORMATS[name].suffix}"
        write_verified(network, path, FORMATS[name], options=ExportOptions(), pictures=pictures())
    except CheckpointError as error:
        print(str(error).splitlines()[0][:14])
print([each.name for each in folder.iterdir()])
"""


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(run_python, tmp_path):
    printed = run_python(FULL_DISK, str(tmp_path), PYTHONPATH="tests").splitlines()
    assert [line for line in printed if not line.startswith("[torch.onnx]")] == ["cannot write /"] * 2 + ["[]"]


def test_made_pictures_are_the_same_every_time_and_differ_from_each_other():
    first, again = made_pictures(3), made_pictures(3)
    assert [one.tobytes() for one in first] == [one.tobytes() for one in again]
    assert len({one.size for one in first}) == 3
    assert {one.size for one in made_pictures(2, (30, 40))} == {(40, 30)}
