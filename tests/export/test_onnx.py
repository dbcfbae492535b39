"""An ONNX file predicts as PyTorch; changed files and files of other programs are rejected."""

import sys
from concurrent.futures import ThreadPoolExecutor

import onnx
import pytest
import torch

from explain.small_models import SMALL_CONVNEXT
from export.networks import (
    LABELS,
    build_classifier,
    build_with_head,
    export_and_open,
    export_file,
    reference_output,
    rewrite_header,
    tensors,
)  # fmt: skip
from van.errors import CheckpointError, HashMismatch, MissingExtra, ShapeError, UsageError
from van.export import onnx as module
from van.export.formats import format_of, is_exported, open_session
from van.export.writing import ExportOptions, _MatrixAveragePool, check_exportable, prepare

CLOSE = {"rtol": 0, "atol": 5e-6}
"""Another order of summation; the largest logits are about 1."""


def assert_same_detections(detections, expected):
    """Compare labels, scores and boxes in order; there must be more than five."""
    for ours, theirs in zip(detections, expected, strict=True):
        assert len(theirs["scores"]) > 5
        assert ours["labels"].tolist() == theirs["labels"].tolist()
        torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=0, atol=1e-5)
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=0, atol=1e-3)


def test_any_batch_size_predicts_as_pytorch(network, onnx_file):
    session = open_session(onnx_file, threads=1)
    for count in (1, 2, 5):
        inputs = torch.stack(tensors(*[(32, 32)] * count))
        torch.testing.assert_close(session(inputs), reference_output(network, inputs), **CLOSE)
    layout = inputs.double().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(session(layout), reference_output(network, inputs), **CLOSE)


def test_the_header_has_class_names_preprocessing_and_versions(network, onnx_file):
    header = open_session(onnx_file, threads=1).header
    assert (header.class_names, header.preprocess, header.task) == (LABELS, network.preprocess, "classify")
    assert (header.opset, header.source, header.inputs) == ("ai.onnx 20", "0" * 64, {"images": (None, 3, 32, 32)})
    assert set(header.versions) == {"van", "torch", "onnx", "onnxscript"}


def test_the_graph_has_only_inference_operators_of_the_opset(onnx_file):
    graph = onnx.load(onnx_file)
    onnx.checker.check_model(onnx_file, full_check=True)
    assert {(one.domain, one.version) for one in graph.opset_import} == {("", module.OPSET)}
    op_types = {node.op_type for node in graph.graph.node}
    assert {"Conv", "Gelu"} <= op_types
    assert not op_types & {"BatchNormalization", "Dropout", "Identity", "ConstantOfShape"}


def test_another_architecture_predicts_as_pytorch_in_batches_of_fixed_size(tmp_path):
    loaded = build_classifier("convnext_tiny", **SMALL_CONVNEXT)
    session = export_and_open(loaded, tmp_path, batch_size=2)
    for count in (1, 2, 5):
        inputs = torch.stack(tensors(*[(32, 32)] * count))
        torch.testing.assert_close(session(inputs), reference_output(loaded, inputs), **CLOSE)
    assert session.header.inputs == {"images": (2, 3, 32, 32)}
    with pytest.raises(ShapeError, match=r"3 x 32 x 32.*3 x 33 x 32.*--dynamic"):
        session(torch.zeros(1, 3, 33, 32))


def test_segmentation_maps_of_any_size_equal_those_of_pytorch(tmp_path):
    loaded = build_with_head("semantic_fpn")
    session = export_and_open(loaded, tmp_path, dynamic=True)
    inputs = tensors((64, 96), (33, 41), (64, 96), (97, 50))
    for ours, theirs in zip(session(inputs), reference_output(loaded, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    one = torch.stack(inputs[:1])
    torch.testing.assert_close(session(one), reference_output(loaded, one), rtol=0, atol=1e-5)
    with pytest.raises(ShapeError, match=r"at least 33.*3 x 32 x 64$"):
        session(tensors((32, 64)))


@pytest.mark.parametrize("cells", [1, 2, 3, 6])
def test_matrix_average_pool_equals_adaptive_average_pool(cells):
    for rows in (1, 2, 5, 6, 7, 13):
        x = torch.stack(tensors((rows, 8), (rows, 8))).double()
        torch.testing.assert_close(_MatrixAveragePool(cells)(x), torch.nn.AdaptiveAvgPool2d(cells)(x))


@pytest.mark.slow
def test_upernet_predicts_at_sizes_not_divisible_by_its_pools(tmp_path):
    loaded = build_with_head("upernet")
    session = export_and_open(loaded, tmp_path, dynamic=True)
    inputs = tensors((64, 96), (77, 101), (161, 70))
    for ours, theirs in zip(session(inputs), reference_output(loaded, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_retinanet_detects_the_same_objects_as_in_pytorch(tmp_path):
    loaded = build_with_head("retinanet")
    session = export_and_open(loaded, tmp_path, input_size=(64, 96))
    inputs = tensors((64, 96), (50, 70))
    assert_same_detections(session(inputs), reference_output(loaded, inputs))
    assert "in Python" in session.header.notes[0]
    with pytest.raises(ShapeError, match=r"3 x 64 x 96.*3 x 96 x 96"):
        session(tensors((65, 96)))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["retinanet", "fcos"])
def test_one_stage_detectors_detect_the_same_objects_at_any_size(head, tmp_path):
    loaded = build_with_head(head)
    session = export_and_open(loaded, tmp_path, dynamic=True)
    inputs = tensors((64, 96), (100, 33), (50, 70))
    assert_same_detections(session(inputs), reference_output(loaded, inputs))


@pytest.mark.parametrize(
    ("task", "head"),
    [
        ("panoptic", "mask2former"),
        ("detect", "d_fine"),
    ],
)
def test_heads_without_dynamic_sizes_are_rejected_with_the_flag_to_leave_out(task, head, network):
    loaded = network.replace(task=task, options={"head": head})
    with pytest.raises(UsageError, match=f"{head}.*--dynamic"):
        check_exportable(loaded, dynamic=True)


def test_a_backbone_without_classes_cannot_be_exported(network, tmp_path):
    with pytest.raises(UsageError, match="van_b0"):
        export_file(network.replace(class_names=()), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_half_stores_float16_and_differs_by_rounding_only(network, tmp_path):
    path = export_file(network, tmp_path, half=True, dynamic=True)
    data_types = [tensor.data_type for tensor in onnx.load(path).graph.initializer]
    assert onnx.TensorProto.FLOAT16 in data_types
    assert onnx.TensorProto.FLOAT not in data_types
    session, inputs = open_session(path, threads=1), torch.stack(tensors((32, 32), (32, 32)))
    expected = reference_output(network, inputs)
    difference = (session(inputs) - expected).abs().max() / expected.abs().max()
    assert 1e-6 < difference < 2e-2  # the lower bound shows that the weights are not float32
    assert (session(inputs).dtype, session.header.precision) == (torch.float32, "float16")


def test_concurrent_threads_get_their_own_predictions(network, onnx_file):
    session = open_session(onnx_file, threads=1)
    batches = [torch.stack(tensors(*[(32, 32)] * (1 + seed % 3), seed=seed)) for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        for outputs, inputs in zip(pool.map(session, batches), batches, strict=True):
            torch.testing.assert_close(outputs, reference_output(network, inputs), **CLOSE)


def test_a_closed_session_raises_a_usage_error(onnx_file):
    session = open_session(onnx_file, threads=1)
    session.close()
    with pytest.raises(UsageError, match="session"):
        session(torch.zeros(1, 3, 32, 32))


def test_a_changed_weight_and_an_edited_header_are_rejected(onnx_copy):
    content = bytearray(onnx_copy.read_bytes())
    for offset in (len(content) // 2, content.index(b"one & two")):
        onnx_copy.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
        with pytest.raises(HashMismatch, match=r"network\.onnx"):
            open_session(onnx_copy)


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.9, 0.999])
def test_a_truncated_file_is_rejected(fraction, onnx_copy):
    content = onnx_copy.read_bytes()
    onnx_copy.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(CheckpointError, match=r"network\.onnx"):
        open_session(onnx_copy)


def test_files_of_other_programs_are_rejected(tmp_path, onnx_copy):
    text = tmp_path / "notes.onnx"
    text.write_text("no network at all\n")
    model = onnx.load(onnx_copy)
    del model.metadata_props[:]
    onnx.save(model, onnx_copy)
    for path in (text, onnx_copy):
        with pytest.raises(CheckpointError, match=rf"{path.name}.*van export"):
            open_session(path)
    for path, fact in ((tmp_path / "nowhere.onnx", r"nowhere\.onnx"), (tmp_path, r"\.onnx, \.xml")):
        with pytest.raises((CheckpointError, UsageError), match=fact):
            open_session(path)


def test_a_file_with_a_valid_checksum_but_no_network_is_rejected_by_the_runtime(tmp_path):
    from van.export.header import CHECKSUM_PLACEHOLDER, write_checksum

    path = tmp_path / "checksum.onnx"
    path.write_text(CHECKSUM_PLACEHOLDER)
    write_checksum(path)
    with pytest.raises(CheckpointError, match=r"checksum\.onnx.*ONNX Runtime"):
        open_session(path)


def test_a_header_edited_with_its_checksum_is_read_if_valid(onnx_copy):
    rewrite_header(onnx_copy, class_names=("a", "b", "c"))
    assert open_session(onnx_copy).header.class_names == ("a", "b", "c")  # the checksum detects accidental changes only
    rewrite_header(onnx_copy, precision="float8")
    with pytest.raises(CheckpointError, match="precision"):
        open_session(onnx_copy)


def test_weights_beyond_the_protobuf_limit_are_rejected_before_writing(network, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(CheckpointError, match=r"2 GiB.*--half"):
        export_file(network, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unavailable_devices_and_invalid_thread_counts_are_rejected(onnx_file):
    with pytest.raises(UsageError, match=r"'tpu'.*CPUExecutionProvider"):
        open_session(onnx_file, device="tpu")
    with pytest.raises(UsageError, match=r"threads.*1.*0"):
        open_session(onnx_file, threads=0)


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_packages_are_named_when_writing(package, network, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"ONNX.*{package}"):
        export_file(network, tmp_path)


def test_the_missing_runtime_is_named_when_reading(onnx_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"ONNX.*onnxruntime"):
        open_session(onnx_file)


def test_the_format_follows_from_the_name_unless_the_file_is_a_checkpoint(onnx_file, tmp_path):
    names = {"a.onnx": "onnx", "a.XML": "openvino", "a.pt2": "torch-export"}
    for name, format_ in names.items():
        matched = format_of(name)
        assert matched is not None
        assert matched.name == format_
    assert format_of("best.safetensors") is None
    assert is_exported(onnx_file)
    assert not is_exported(tmp_path / "nowhere.onnx")
    from explain.small_models import write_small

    assert not is_exported(write_small(tmp_path / "misnamed.onnx"))


def test_the_exported_network_is_not_modified(network):
    before = {name: tensor.clone() for name, tensor in network.network.state_dict().items()}
    prepare(network, ExportOptions(half=True), format="onnx")
    after = network.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == before[name].dtype for name in before)
