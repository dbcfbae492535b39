"""An ONNX file answers as PyTorch does, and a file that is not ours, or no longer, is refused."""

import dataclasses
import sys
from concurrent.futures import ThreadPoolExecutor

import onnx
import pytest
import torch

from explain.small import SMALL_CONVNEXT
from export.made import (
    LABELS,
    classifier,
    reopened,
    right_answer,
    tensors,
    with_head,
    with_header,
    written,
)  # fmt: skip
from van.errors import CheckpointError, HashMismatch, MissingExtra, ShapeError, UsageError
from van.export import onnx as module
from van.export.formats import format_of, is_exported, open_session
from van.export.writing import ExportOptions, _PooledByMatrix, prepare, want_exportable

CLOSE = {"rtol": 0, "atol": 5e-6}
"""Sums in another order; the largest logits are about 1."""


def want_the_same_things(found, right):
    """Boxes, labels and scores, in order; there must be some."""
    for ours, theirs in zip(found, right, strict=True):
        assert len(theirs["scores"]) > 5
        assert ours["labels"].tolist() == theirs["labels"].tolist()
        torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=0, atol=1e-5)
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=0, atol=1e-3)


def test_any_number_of_pictures_is_answered_as_by_pytorch(network, onnx_file):
    session = open_session(onnx_file, threads=1)
    for count in (1, 2, 5):
        seen = torch.stack(tensors(*[(32, 32)] * count))
        torch.testing.assert_close(session(seen), right_answer(network, seen), **CLOSE)
    layout = seen.double().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(session(layout), right_answer(network, seen), **CLOSE)


def test_labels_and_preprocessing_come_back_equal_with_what_wrote_them(network, onnx_file):
    header = open_session(onnx_file, threads=1).header
    assert (header.labels, header.preprocess, header.task) == (LABELS, network.preprocess, "classify")
    assert (header.opset, header.source, header.inputs) == ("ai.onnx 20", "0" * 64, {"pictures": (None, 3, 32, 32)})
    assert set(header.versions) == {"van", "torch", "onnx", "onnxscript"}


def test_the_graph_holds_plain_operators_of_the_stated_opset_and_nothing_of_training(onnx_file):
    graph = onnx.load(onnx_file)
    onnx.checker.check_model(onnx_file, full_check=True)
    assert {(one.domain, one.version) for one in graph.opset_import} == {("", module.OPSET)}
    used = {node.op_type for node in graph.graph.node}
    assert {"Conv", "Gelu"} <= used
    assert not used & {"BatchNormalization", "Dropout", "Identity", "ConstantOfShape"}


def test_another_family_answers_as_pytorch_does_in_fixed_batches(tmp_path):
    loaded = classifier("convnext_tiny", **SMALL_CONVNEXT)
    session = reopened(loaded, tmp_path, batch_size=2)
    for count in (1, 2, 5):
        seen = torch.stack(tensors(*[(32, 32)] * count))
        torch.testing.assert_close(session(seen), right_answer(loaded, seen), **CLOSE)
    assert session.header.inputs == {"pictures": (2, 3, 32, 32)}
    with pytest.raises(ShapeError, match="exported for pictures of 3 x 32 x 32, and sees 3 x 33 x 32; export it with"):
        session(torch.zeros(1, 3, 33, 32))


def test_maps_of_any_size_are_those_of_pytorch(tmp_path):
    loaded = with_head("semantic_fpn")
    session = reopened(loaded, tmp_path, dynamic=True)
    seen = tensors((64, 96), (33, 41), (64, 96), (97, 50))
    for ours, theirs in zip(session(seen), right_answer(loaded, seen), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    one = torch.stack(seen[:1])
    torch.testing.assert_close(session(one), right_answer(loaded, one), rtol=0, atol=1e-5)
    with pytest.raises(ShapeError, match=r"3 x at least 33 x at least 33, and sees 3 x 32 x 64$"):
        session(tensors((32, 64)))


@pytest.mark.parametrize("cells", [1, 2, 3, 6])
def test_pooling_by_matrix_is_pytorchs_adaptive_pooling(cells):
    for rows in (1, 2, 5, 6, 7, 13):
        x = torch.stack(tensors((rows, 8), (rows, 8))).double()
        torch.testing.assert_close(_PooledByMatrix(cells)(x), torch.nn.AdaptiveAvgPool2d(cells)(x))


@pytest.mark.slow
def test_upernet_answers_at_sizes_that_its_pools_do_not_divide(tmp_path):
    loaded = with_head("upernet")
    session = reopened(loaded, tmp_path, dynamic=True)
    seen = tensors((64, 96), (77, 101), (161, 70))
    for ours, theirs in zip(session(seen), right_answer(loaded, seen), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_retinanet_finds_the_same_things_as_in_pytorch(tmp_path):
    loaded = with_head("retinanet")
    session = reopened(loaded, tmp_path, seen=(64, 96))
    seen = tensors((64, 96), (50, 70))
    want_the_same_things(session(seen), right_answer(loaded, seen))
    assert "in Python" in session.header.notes[0]
    with pytest.raises(ShapeError, match="exported for pictures of 3 x 64 x 96, and sees 3 x 96 x 96"):
        session(tensors((65, 96)))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["retinanet", "fcos"])
def test_a_detector_of_one_stage_finds_the_same_things_at_any_size(head, tmp_path):
    loaded = with_head(head)
    session = reopened(loaded, tmp_path, dynamic=True)
    seen = tensors((64, 96), (100, 33), (50, 70))
    want_the_same_things(session(seen), right_answer(loaded, seen))


@pytest.mark.parametrize(
    ("task", "head", "why"),
    [
        ("panoptic", "mask2former", "leave out --dynamic"),
        ("detect", "d_fine", "leave out --dynamic"),
    ],
)
def test_what_cannot_be_exported_says_why(task, head, why, network):
    loaded = dataclasses.replace(network, task=task, options={"head": head})
    with pytest.raises(UsageError, match=why):
        want_exportable(loaded, dynamic=True)


def test_a_backbone_without_classes_cannot_be_exported(network, tmp_path):
    with pytest.raises(UsageError, match="it is a backbone without a classifier"):
        written(dataclasses.replace(network, labels=()), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_half_stores_float16_and_differs_by_its_rounding_only(network, tmp_path):
    path = written(network, tmp_path, half=True, dynamic=True)
    kinds = [one.data_type for one in onnx.load(path).graph.initializer]
    assert onnx.TensorProto.FLOAT16 in kinds
    assert onnx.TensorProto.FLOAT not in kinds
    session, seen = open_session(path, threads=1), torch.stack(tensors((32, 32), (32, 32)))
    right = right_answer(network, seen)
    difference = (session(seen) - right).abs().max() / right.abs().max()
    assert 1e-6 < difference < 2e-2  # more than float32's own, so that it is float16 indeed
    assert (session(seen).dtype, session.header.precision) == (torch.float32, "float16")


def test_threads_get_their_own_answers(network, onnx_file):
    session = open_session(onnx_file, threads=1)
    batches = [torch.stack(tensors(*[(32, 32)] * (1 + seed % 3), seed=seed)) for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        for found, seen in zip(pool.map(session, batches), batches, strict=True):
            torch.testing.assert_close(found, right_answer(network, seen), **CLOSE)


def test_a_closed_session_says_so(onnx_file):
    session = open_session(onnx_file, threads=1)
    session.close()
    with pytest.raises(UsageError, match="the session is closed"):
        session(torch.zeros(1, 3, 32, 32))


def test_a_changed_weight_and_an_edited_header_are_refused(onnx_copy):
    content = bytearray(onnx_copy.read_bytes())
    for place in (len(content) // 2, content.index(b"one & two")):
        onnx_copy.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(HashMismatch, match="export it again"):
            open_session(onnx_copy)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9, 0.999])
def test_a_truncated_file_is_refused(share, onnx_copy):
    content = onnx_copy.read_bytes()
    onnx_copy.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"is empty|cut off or damaged"):
        open_session(onnx_copy)


def test_files_of_others_are_refused(tmp_path, onnx_copy):
    text = tmp_path / "notes.onnx"
    text.write_text("no network at all\n")
    model = onnx.load(onnx_copy)
    del model.metadata_props[:]
    onnx.save(model, onnx_copy)
    for path in (text, onnx_copy):
        with pytest.raises(CheckpointError, match="something else wrote it; write it with van export"):
            open_session(path)
    for path, what in ((tmp_path / "nowhere.onnx", "no such file"), (tmp_path, "the suffix of no exported network")):
        with pytest.raises((CheckpointError, UsageError), match=what):
            open_session(path)


def test_a_sealed_file_that_is_no_network_is_refused_by_the_runtime_in_one_line(tmp_path):
    from van.export.header import UNSEALED, seal

    path = tmp_path / "sealed.onnx"
    path.write_text(UNSEALED)
    seal(path)
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot open it"):
        open_session(path)


def test_a_forged_header_is_read_but_must_still_be_one(onnx_copy):
    with_header(onnx_copy, labels=("a", "b", "c"))
    assert open_session(onnx_copy).header.labels == ("a", "b", "c")  # the seal guards against mix-ups, not forgers
    with_header(onnx_copy, precision="float8")
    with pytest.raises(CheckpointError, match="precision"):
        open_session(onnx_copy)


def test_weights_that_protobuf_cannot_hold_are_refused_before_anything_is_written(network, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(CheckpointError, match="one ONNX file holds less than 2; use --half or openvino"):
        written(network, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_devices_and_threads_that_are_not_there_are_refused(onnx_file):
    with pytest.raises(UsageError, match=r"device is 'tpu', and this ONNX Runtime has .*CPUExecutionProvider"):
        open_session(onnx_file, device="tpu")
    with pytest.raises(UsageError, match="threads is 0; wanted at least 1"):
        open_session(onnx_file, threads=0)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_absent_packages_are_named_when_writing(package, network, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=f"writing an ONNX file needs the package '{package}'"):
        written(network, tmp_path)


def test_the_absent_runtime_is_named_when_reading(onnx_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match="answering from an ONNX file needs the package 'onnxruntime'"):
        open_session(onnx_file)


def test_a_file_is_known_by_its_name_unless_it_is_a_checkpoint(onnx_file, tmp_path):
    names = {"a.onnx": "onnx", "a.XML": "openvino", "a.pt2": "torch-export", "a.aoti.pt2": "aot-inductor"}
    for name, format_ in names.items():
        found = format_of(name)
        assert found is not None
        assert found.name == format_
    assert format_of("best.safetensors") is None
    assert is_exported(onnx_file)
    assert not is_exported(tmp_path / "nowhere.onnx")
    from explain.small import write_small

    assert not is_exported(write_small(tmp_path / "misnamed.onnx"))


def test_the_network_that_is_exported_is_left_as_it_was(network):
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    prepare(network, ExportOptions(half=True), format="onnx")
    after = network.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == before[name].dtype for name in before)
