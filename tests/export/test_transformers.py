"""Exported transformer detectors and Mask2Former predict as in PyTorch."""

import dataclasses
import statistics
from typing import Any

import pytest
import torch

from export.networks import build_with_head, export_and_open, images, reference_output, tensors
from export.test_onnx import assert_same_detections
from van.errors import ShapeError
from van.export.formats import FORMATS
from van.export.session import ExportedNetwork
from van.export.verify import TOLERANCES, verify, write_verified
from van.export.writing import ExportOptions, prepare
from van.heads.panoptic_segmenter import TracedMaskHead

DETECTORS = ("d_fine", "rt_detr_v2", "deformable_detr")
INPUT_SIZE = (64, 96)
SIZES = ((64, 96), (50, 70), (64, 96), (61, 66))
"""Sizes of images with the same padded size."""

CASES = [(head, format_) for head in (*DETECTORS, "mask2former") for format_ in FORMATS]


def assert_same_masks(outputs, expected):
    for ours, theirs in zip(outputs, expected, strict=True):
        for name in ("class_logits", "mask_logits"):
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-5 * theirs[name].abs().max().item())


def assert_same_outputs(head, outputs, expected):
    (assert_same_masks if head == "mask2former" else assert_same_detections)(outputs, expected)


@pytest.mark.parametrize("head", [*DETECTORS, "mask2former"])
def test_the_traced_graph_predicts_as_the_network(head):
    loaded = build_with_head(head)
    prepared = prepare(loaded, ExportOptions(input_size=INPUT_SIZE), format="torch-export")
    program = prepared.program()
    graph: Any = program.module()
    assert not program.range_constraints  # constraints come with shape checks, which other runtimes cannot run
    assert not [node for node in program.graph.nodes if "_is_all_true" in str(node.target)]
    session = ExportedNetwork(prepared.header, lambda inputs: graph(*inputs.values()))
    with torch.inference_mode():
        assert_same_outputs(head, session(tensors(*SIZES)), reference_output(loaded, tensors(*SIZES)))
    with pytest.raises(ShapeError, match="3 x 64 x"):
        session(tensors((65, 96)))


@pytest.mark.slow
@pytest.mark.parametrize(("head", "format_"), CASES)
def test_every_runtime_predicts_as_the_network(head, format_, tmp_path):
    loaded = build_with_head(head)
    session = export_and_open(loaded, tmp_path, format_, input_size=INPUT_SIZE)
    assert_same_outputs(head, session(tensors(*SIZES)), reference_output(loaded, tensors(*SIZES)))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["deformable_detr", "mask2former"])
def test_batches_of_fixed_size_are_padded(head, tmp_path):
    loaded = build_with_head(head)
    session = export_and_open(loaded, tmp_path, "openvino", input_size=INPUT_SIZE, batch_size=3)
    assert_same_outputs(head, session(tensors(*SIZES)), reference_output(loaded, tensors(*SIZES)))


def test_self_attention_with_separate_axes_equals_that_of_transformers():
    loaded = build_with_head("mask2former")
    layer = loaded.network.segmenter.model.transformer_module.decoder.layers[0]
    theirs, (hidden, positions) = layer.self_attn, torch.randn(2, 7, 3, 64, generator=torch.Generator().manual_seed(0))
    ours = TracedMaskHead(loaded.network).network.segmenter.model.transformer_module.decoder.layers[0].self_attn
    assert ours is not theirs
    with torch.inference_mode():
        attended, _ = ours(hidden_states=hidden, position_embeddings=positions)
        expected, _ = theirs(hidden_states=hidden, position_embeddings=positions)
        without_positions, _ = theirs(hidden_states=hidden, position_embeddings=torch.zeros_like(positions))
    torch.testing.assert_close(attended, expected, rtol=0, atol=1e-6)
    assert (without_positions - expected).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("head", ["retinanet", *DETECTORS])
def test_half_is_written_and_within_its_tolerance(head, tmp_path):
    loaded, path = build_with_head(head), tmp_path / "network.onnx"
    options = ExportOptions(half=True, input_size=(64, 64))
    verification = write_verified(loaded, path, FORMATS["onnx"], options=options, images=images(3, (64, 64)))
    assert 1e-5 < verification.relative_diff < TOLERANCES["float16"]  # above float32's, so it is float16
    assert FORMATS["onnx"].open(path).header.precision == "float16"


@pytest.mark.slow
def test_half_masks_differ_by_rounding_unless_it_changes_the_masked_attention(tmp_path):
    """Queries attend where a mask exceeds 0.5: on so few cells a moved edge changes every query in some images."""
    loaded, path, inputs = build_with_head("mask2former"), tmp_path / "network.onnx", images(7, (64, 64))
    options = ExportOptions(half=True, input_size=(64, 64))
    write_verified(loaded, path, FORMATS["onnx"], options=options, images=inputs, tolerance=0.3)
    verifications = [verify(FORMATS["onnx"].open(path), loaded, [image]) for image in inputs]
    assert 1e-5 < statistics.median(each.relative_diff for each in verifications) < TOLERANCES["float16"]
    assert all(each.agreement >= 0.8 for each in verifications)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        "segmenter.class_predictor.weight",
        "segmenter.model.transformer_module.decoder.mask_predictor.mask_embedder.2.0.weight",
        "segmenter.model.pixel_level_module.decoder.encoder.layers.0.self_attn.sampling_offsets.bias",
    ],
)
def test_a_changed_weight_of_a_panoptic_network_is_detected(changed, mask_session):
    session, loaded = mask_session
    inputs = images(2, (64, 64))
    verification = verify(session, loaded, inputs)
    assert verification.is_within(TOLERANCES["float32"])
    assert verification.agreement == 1.0
    weight = loaded.network.get_parameter(changed)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.01)
    try:
        verification = verify(session, loaded, inputs)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert verification.agreement > 0.9
    assert not verification.is_within(TOLERANCES["float32"])


def test_different_query_classes_lower_the_agreement():
    loaded = build_with_head("mask2former")
    header = prepare(loaded, ExportOptions(input_size=(64, 64)), format="onnx").header

    class Negated:
        """A session with negated class logits."""

        def __call__(self, inputs):
            return [{**one, "class_logits": -one["class_logits"]} for one in reference_output(loaded, inputs)]

    session = Negated()
    session.header = header
    verification = verify(session, loaded, images(1, (64, 64)))
    assert verification.agreement < 0.1
    session.header = dataclasses.replace(header, class_names=header.class_names[::-1])
    assert not verify(session, loaded, images(1, (64, 64))).class_names_match


@pytest.fixture(scope="module")
def mask_session(tmp_path_factory):
    """Return a session on an exported panoptic network, and the network."""
    loaded = build_with_head("mask2former")
    return export_and_open(loaded, tmp_path_factory.mktemp("masks"), "torch-export", input_size=(64, 64)), loaded
