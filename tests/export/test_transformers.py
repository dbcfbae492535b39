"""Networks with a transformer on VAN answer from their exports as in PyTorch: boxes of queries, and their masks."""

import dataclasses
import statistics
from typing import Any

import pytest
import torch

from export.made import pictures, reopened, right_answer, tensors, with_head
from export.test_onnx import want_the_same_things
from van.errors import ShapeError
from van.export.formats import FORMATS
from van.export.panoptic import MaskHeads
from van.export.session import ExportedNetwork
from van.export.verify import TOLERANCES, verify, write_verified
from van.export.writing import ExportOptions, prepare

DETECTORS = ("d_fine", "rt_detr_v2", "deformable_detr")
SEEN = (64, 96)
SIZES = ((64, 96), (50, 70), (64, 96), (61, 66))
"""Of pictures that share a canvas, though not their own size."""

CASES = [
    (head, format_)
    for head in (*DETECTORS, "mask2former")
    for format_ in FORMATS
    if format_ != "aot-inductor" or head in ("rt_detr_v2", "mask2former")
]
"""Machine code takes a minute to compile, and one network of queries stands for all."""


def want_the_same_masks(found, right):
    for ours, theirs in zip(found, right, strict=True):
        for name in ("class_logits", "mask_logits"):
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-5 * theirs[name].abs().max().item())


def want_the_same(head, found, right):
    (want_the_same_masks if head == "mask2former" else want_the_same_things)(found, right)


@pytest.mark.parametrize("head", [*DETECTORS, "mask2former"])
def test_the_graph_that_every_format_is_made_of_answers_as_the_network(head):
    loaded = with_head(head)
    prepared = prepare(loaded, ExportOptions(seen=SEEN), format="torch-export")
    program = prepared.program()
    graph: Any = program.module()
    assert not program.range_constraints  # nor the checks of sizes that brought them, which others cannot run
    assert not [node for node in program.graph.nodes if "_is_all_true" in str(node.target)]
    session = ExportedNetwork(prepared.header, lambda inputs: graph(*inputs.values()))
    with torch.inference_mode():
        want_the_same(head, session(tensors(*SIZES)), right_answer(loaded, tensors(*SIZES)))
    with pytest.raises(ShapeError, match="exported for pictures of 3 x 64 x"):
        session(tensors((65, 96)))


@pytest.mark.slow
@pytest.mark.parametrize(("head", "format_"), CASES)
def test_every_runtime_answers_as_the_network(head, format_, tmp_path):
    loaded = with_head(head)
    session = reopened(loaded, tmp_path, format_, seen=SEEN)
    want_the_same(head, session(tensors(*SIZES)), right_answer(loaded, tensors(*SIZES)))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["deformable_detr", "mask2former"])
def test_batches_of_fixed_size_are_filled_up(head, tmp_path):
    loaded = with_head(head)
    session = reopened(loaded, tmp_path, "openvino", seen=SEEN, batch_size=3)
    want_the_same(head, session(tensors(*SIZES)), right_answer(loaded, tensors(*SIZES)))


def test_self_attention_with_four_axes_is_that_of_transformers():
    loaded = with_head("mask2former")
    layer = loaded.model.segmenter.model.transformer_module.decoder.layers[0]
    theirs, (hidden, places) = layer.self_attn, torch.randn(2, 7, 3, 64, generator=torch.Generator().manual_seed(0))
    ours = MaskHeads(loaded.model).network.segmenter.model.transformer_module.decoder.layers[0].self_attn
    assert ours is not theirs
    with torch.inference_mode():
        found, _ = ours(hidden_states=hidden, position_embeddings=places)
        right, _ = theirs(hidden_states=hidden, position_embeddings=places)
        unplaced, _ = theirs(hidden_states=hidden, position_embeddings=torch.zeros_like(places))
    torch.testing.assert_close(found, right, rtol=0, atol=1e-6)
    assert (unplaced - right).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("head", ["retinanet", *DETECTORS])
def test_half_is_written_and_within_its_tolerance(head, tmp_path):
    loaded, path = with_head(head), tmp_path / "network.onnx"
    options = ExportOptions(half=True, seen=(64, 64))
    found = write_verified(loaded, path, FORMATS["onnx"], options=options, pictures=pictures(3, (64, 64)))
    assert 1e-5 < found.relative < TOLERANCES["float16"]  # more than float32's own, so that it is float16 indeed
    assert FORMATS["onnx"].open(path).header.precision == "float16"


@pytest.mark.slow
def test_masks_in_half_differ_by_rounding_unless_it_moves_where_the_attention_looks(tmp_path):
    """It looks where a mask is above one half: on so few cells a moved edge changes every query, in some pictures."""
    loaded, path, seen = with_head("mask2former"), tmp_path / "network.onnx", pictures(7, (64, 64))
    options = ExportOptions(half=True, seen=(64, 64))
    write_verified(loaded, path, FORMATS["onnx"], options=options, pictures=seen, tolerance=0.3)
    found = [verify(FORMATS["onnx"].open(path), loaded, [picture]) for picture in seen]
    assert 1e-5 < statistics.median(each.relative for each in found) < TOLERANCES["float16"]
    assert all(each.agreement >= 0.8 for each in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        "segmenter.class_predictor.weight",
        "segmenter.model.transformer_module.decoder.mask_predictor.mask_embedder.2.0.weight",
        "segmenter.model.pixel_level_module.decoder.encoder.layers.0.self_attn.sampling_offsets.bias",
    ],
)
def test_a_changed_weight_of_a_panoptic_network_is_noticed(changed, mask_session):
    session, loaded = mask_session
    seen = pictures(2, (64, 64))
    found = verify(session, loaded, seen)
    assert found.within(TOLERANCES["float32"])
    assert found.agreement == 1.0
    weight = loaded.model.get_parameter(changed)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.01)
    try:
        found = verify(session, loaded, seen)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert found.agreement > 0.9
    assert not found.within(TOLERANCES["float32"])


def test_other_classes_of_queries_are_no_agreement():
    loaded = with_head("mask2former")
    header = prepare(loaded, ExportOptions(seen=(64, 64)), format="onnx").header

    class Reversed:
        """A session whose queries say the opposite."""

        def __call__(self, seen):
            return [{**one, "class_logits": -one["class_logits"]} for one in right_answer(loaded, seen)]

    session = Reversed()
    session.header = header
    found = verify(session, loaded, pictures(1, (64, 64)))
    assert found.agreement < 0.1
    session.header = dataclasses.replace(header, labels=header.labels[::-1])
    assert not verify(session, loaded, pictures(1, (64, 64))).same_labels


@pytest.fixture(scope="module")
def mask_session(tmp_path_factory):
    """A panoptic network and a session on its export."""
    loaded = with_head("mask2former")
    return reopened(loaded, tmp_path_factory.mktemp("masks"), "torch-export", seen=(64, 64)), loaded
