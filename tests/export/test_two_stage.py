"""Exported Faster and Mask R-CNN detect the same objects as in PyTorch, with equal boxes and masks."""

import dataclasses

import pytest
import torch

from export.networks import build_with_head, export_and_open, images, reference_output, tensors
from van.errors import ShapeError
from van.export.session import ExportedNetwork
from van.export.verify import TOLERANCES, verify
from van.heads import HEADS
from van.heads.network import stack_padded
from van.heads.two_stage import TracedTwoStage, predict_any_score, valid_detections
from van.predict import Predictor

SIZES = ((64, 96), (50, 70), (64, 65))
"""With the padded size 64 x 96; only the first image has no padding."""
MANY_SIZES = ((64, 96), (100, 33), (50, 70), (65, 130))


@pytest.fixture(scope="module")
def mask_rcnn():
    """Return a network that tests must not change."""
    return build_with_head("mask_rcnn")


@pytest.fixture(scope="module")
def session(mask_rcnn, tmp_path_factory):
    """Return a session on its ONNX file for the padded size 64 x 96."""
    return export_and_open(mask_rcnn, tmp_path_factory.mktemp("onnx"), input_size=(64, 96))


def assert_same_detections(detections, expected):
    """Compare all outputs in order; there must be more than five detections, of several classes."""
    for ours, theirs in zip(detections, expected, strict=True):
        assert set(ours) == set(theirs)
        assert len(theirs["scores"]) > 5
        assert len(set(theirs["labels"].tolist())) > 1
        assert ours["labels"].tolist() == theirs["labels"].tolist()
        torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=0, atol=1e-5)
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=0, atol=1e-3)
        if "masks" in theirs:
            assert 0.2 < (theirs["masks"] > 0.5).sum() / (theirs["masks"] > 0).sum() < 0.8
            torch.testing.assert_close(ours["masks"], theirs["masks"], rtol=0, atol=1e-4)


def run_traced_part(loaded, inputs, padded_size):
    """Return the detections of any score of the traced part in PyTorch, a dictionary for each image."""
    sizes = torch.tensor([image.shape[1:] for image in inputs]).float()
    with torch.inference_mode():
        outputs = TracedTwoStage(loaded.network.eval())(stack_padded(inputs, padded_size), sizes)
    names = HEADS[loaded.options["head"]].export().outputs
    return [valid_detections(image_outputs, names) for image_outputs in zip(*outputs, strict=True)]


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_the_static_graph_detects_what_the_network_does(head):
    """Several images in one batch; detections under the score threshold are included."""
    loaded, inputs = build_with_head(head), tensors(*SIZES)
    counts, num_under_threshold = [], 0
    for ours, image in zip(run_traced_part(loaded, inputs, (64, 96)), inputs, strict=True):
        with torch.inference_mode():
            theirs = predict_any_score(loaded.network, image)
        count = len(ours["scores"])
        assert 5 < count <= len(theirs["scores"])
        for name, values in ours.items():
            torch.testing.assert_close(values, theirs[name][:count], rtol=1e-5, atol=1e-5)
        (expected,) = reference_output(loaded, [image])
        above = ours["scores"] > 0.6
        assert above.sum() == len(expected["scores"])
        num_under_threshold += int((~above).sum())
        counts.append(count)
    assert max(counts) == loaded.options["box_detections_per_img"] > min(counts)
    assert num_under_threshold > 0


def test_default_numbers_of_anchors_and_detections_give_the_networks_detections():
    """With this many boxes torchvision applies NMS class by class, and the graph offsets the boxes by class."""
    loaded = build_with_head("mask_rcnn")
    detector = loaded.network.detector
    detector.rpn._pre_nms_top_n["testing"] = detector.rpn._post_nms_top_n["testing"] = 1000
    detector.roi_heads.score_thresh, detector.roi_heads.detections_per_img = 0.05, 100
    (image,) = tensors((90, 121))
    (ours,) = run_traced_part(loaded, [image], (96, 128))
    (theirs,) = reference_output(loaded, [image])
    assert len(theirs["scores"]) == len(ours["scores"]) == 100
    assert ours["labels"].tolist() == theirs["labels"].tolist()
    torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=0, atol=1e-4)


def test_mask_rcnn_detects_the_same_objects_in_padded_images(mask_rcnn, session):
    inputs = tensors(*SIZES)
    assert_same_detections(session(inputs), reference_output(mask_rcnn, inputs))
    assert session.header.inputs == {"images": (1, 3, 64, 96), "sizes": (1, 2)}
    assert all(fact in session.header.notes[0] for fact in ("scores", "masks", "in Python"))
    with pytest.raises(ShapeError, match=r"3 x 64 x 96.*3 x 96 x 96"):
        session(tensors((65, 96)))


def test_without_sizes_boxes_are_clipped_to_the_padded_image(mask_rcnn, session):
    (image,) = tensors((33, 65))
    padded = stack_padded([image], (64, 96))
    (expected,) = run_traced_part(mask_rcnn, [image], (64, 96))
    boxes = {sizes: session.run(padded, sizes)[0][0] for sizes in (None, ((33, 65),))}
    torch.testing.assert_close(boxes[((33, 65),)][: len(expected["boxes"])], expected["boxes"], rtol=0, atol=1e-3)
    assert boxes[None][:, 3].max() > 40
    assert expected["boxes"][:, 3].max() == 33


def test_an_empty_image_has_only_empty_slots(session):
    """Padding images of a batch are empty, too."""
    boxes, labels, scores, masks = session.run(torch.zeros(1, 3, 64, 96), [(0, 0)])
    assert (scores == -1).all()
    assert [tuple(output.shape) for output in (boxes, labels, masks)] == [(1, 25, 4), (1, 25), (1, 25, 28, 28)]
    assert valid_detections((boxes[0], labels[0], scores[0], masks[0]), HEADS["mask_rcnn"].export().outputs)[
        "boxes"
    ].shape == (0, 4)


@pytest.mark.parametrize(
    "changed", ["mask_predictor.mask_fcn_logits", "mask_head.1.0", "box_head.fc7", "box_predictor.bbox_pred"]
)
def test_a_changed_weight_of_the_second_stage_is_detected(changed, session):
    loaded = build_with_head("mask_rcnn")
    verification = verify(session, loaded, images(2, (64, 90)))
    assert verification.is_within(TOLERANCES["float32"])
    assert 0 < verification.relative_diff < 2e-5
    with torch.no_grad():
        loaded.network.get_parameter(f"detector.roi_heads.{changed}.weight").mul_(1.02)
    verification = verify(session, loaded, images(2, (64, 90)))
    assert verification.agreement > 0.9
    assert not verification.is_within(TOLERANCES["float32"])


def test_detections_under_the_threshold_are_compared_too(session):
    loaded, min_score = build_with_head("mask_rcnn"), 0.9999
    header = dataclasses.replace(session.header, model_options={**loaded.options, "box_score_thresh": min_score})
    empty = ExportedNetwork(header, session._runtime)
    loaded.network.detector.roi_heads.score_thresh = min_score
    (image,) = tensors((64, 90))
    assert [len(model([image])[0]["scores"]) for model in (empty, loaded.network)] == [0, 0]
    assert verify(empty, loaded, images(2, (64, 90))).is_within(TOLERANCES["float32"])
    with torch.no_grad():
        loaded.network.get_parameter("detector.roi_heads.mask_predictor.mask_fcn_logits.weight").mul_(1.02)
    assert not verify(empty, loaded, images(2, (64, 90))).is_within(TOLERANCES["float32"])
    assert loaded.network.detector.roi_heads.score_thresh == min_score


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["onnx", "openvino", "torch-export"])
@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_every_format_detects_the_same_objects_at_any_padded_size(head, format_, tmp_path):
    loaded, inputs = build_with_head(head), tensors(*MANY_SIZES)
    session = export_and_open(loaded, tmp_path, format_, dynamic=True)
    assert_same_detections(session(inputs), reference_output(loaded, inputs))
    assert session.header.inputs == {"images": (1, 3, None, None), "sizes": (1, 2)}
    assert verify(session, loaded, images(3)).is_within(TOLERANCES["float32"])


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["onnx", "openvino", "torch-export"])
def test_a_batch_gives_the_detections_of_its_images(format_, tmp_path):
    loaded, inputs = build_with_head("mask_rcnn"), tensors(*SIZES)
    session = export_and_open(loaded, tmp_path, format_, input_size=(64, 96), batch_size=2)
    assert_same_detections(session(inputs), reference_output(loaded, inputs))
    assert session.header.inputs == {"images": (2, 3, 64, 96), "sizes": (2, 2)}


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["onnx", "openvino", "torch-export"])
def test_half_detections_differ_by_rounding_only(format_, tmp_path):
    """Boxes inside the graph stay in float32, whatever precision the runtime prefers."""
    loaded = build_with_head("mask_rcnn")
    session = export_and_open(loaded, tmp_path, format_, input_size=(64, 96), half=True)
    assert session.header.precision == "float16"
    verification = verify(session, loaded, images(4, (64, 96)))
    assert verification.is_within(TOLERANCES["float16"])
    assert verification.relative_diff > 1e-5  # above float32's, so it is float16


@pytest.mark.slow
def test_a_predictor_predicts_from_the_file_as_from_the_checkpoint(mask_rcnn, tmp_path):
    session = export_and_open(mask_rcnn, tmp_path, dynamic=True)
    predictions = [
        Predictor(mask_rcnn.replace(network=model), device="cpu")(images(3)) for model in (session, mask_rcnn.network)
    ]
    for ours, theirs in zip(*predictions, strict=True):
        assert len(theirs.detections) > 5
        assert [each.label for each in ours.detections] == [each.label for each in theirs.detections]
        for one, other in zip(ours.detections, theirs.detections, strict=True):
            assert one.box == pytest.approx(other.box, abs=1e-2)
            assert (one.mask != other.mask).mean() < 1e-3
