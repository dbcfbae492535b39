"""Faster and Mask R-CNN in a file find the same things as in PyTorch, in the pictures' own frames, masks and all."""

import dataclasses
import shutil

import pytest
import torch

from export.made import pictures, reopened, right_answer, tensors, with_head
from van.errors import ShapeError
from van.export.session import ExportedNetwork
from van.export.two_stage import OUTPUTS, TwoStages, of_any_score, things_of
from van.export.verify import TOLERANCES, verify
from van.models.canvas import stack_padded
from van.predict import Predictor

SIZES = ((64, 96), (50, 70), (64, 65))
"""On a canvas of 64 x 96, which only the first fills."""
MANY_SIZES = ((64, 96), (100, 33), (50, 70), (65, 130))
COMPILED = pytest.param(
    "aot-inductor", marks=pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
)


@pytest.fixture(scope="module")
def mask_rcnn():
    """Not to be changed."""
    return with_head("mask_rcnn")


@pytest.fixture(scope="module")
def session(mask_rcnn, tmp_path_factory):
    """On an ONNX file of it for pictures on a canvas of 64 x 96."""
    return reopened(mask_rcnn, tmp_path_factory.mktemp("onnx"), seen=(64, 96))


def want_the_same_things(found, right):
    """Boxes, labels, scores and masks, in order; there must be some, of several classes, with masks."""
    for ours, theirs in zip(found, right, strict=True):
        assert set(ours) == set(theirs)
        assert len(theirs["scores"]) > 5
        assert len(set(theirs["labels"].tolist())) > 1
        assert ours["labels"].tolist() == theirs["labels"].tolist()
        torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=0, atol=1e-5)
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=0, atol=1e-3)
        if "masks" in theirs:
            assert 0.2 < (theirs["masks"] > 0.5).sum() / (theirs["masks"] > 0).sum() < 0.8
            torch.testing.assert_close(ours["masks"], theirs["masks"], rtol=0, atol=1e-4)


def cut_off(loaded, seen, canvas):
    """What the exported part answers in PyTorch, a dictionary for each picture, whatever the score."""
    sizes = torch.tensor([each.shape[1:] for each in seen]).float()
    with torch.inference_mode():
        outputs = TwoStages(loaded.model.eval())(stack_padded(seen, canvas), sizes)
    return [things_of(own, OUTPUTS[loaded.options["head"]]) for own in zip(*outputs, strict=True)]


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_the_graph_of_fixed_sizes_computes_what_the_network_does(head):
    """Several pictures of one canvas at once, to the last bit; what scores too little is found beside it."""
    loaded, seen = with_head(head), tensors(*SIZES)
    counts, too_little = [], 0
    for ours, picture in zip(cut_off(loaded, seen, (64, 96)), seen, strict=True):
        with torch.inference_mode():
            theirs = of_any_score(loaded.model, picture)
        count = len(ours["scores"])
        assert 5 < count <= len(theirs["scores"])
        for name, values in ours.items():
            torch.testing.assert_close(values, theirs[name][:count], rtol=1e-5, atol=1e-5)
        (right,) = right_answer(loaded, [picture])
        enough = ours["scores"] > 0.6
        assert enough.sum() == len(right["scores"])
        too_little += int((~enough).sum())
        counts.append(count)
    assert max(counts) == loaded.options["box_detections_per_img"] > min(counts)
    assert too_little > 0


def test_as_many_anchors_and_things_as_there_are_by_default_are_the_networks_too():
    """More boxes than torchvision keeps apart by moving them: it goes class by class, and the graph does not."""
    loaded = with_head("mask_rcnn")
    detector = loaded.model.detector
    detector.rpn._pre_nms_top_n["testing"] = detector.rpn._post_nms_top_n["testing"] = 1000
    detector.roi_heads.score_thresh, detector.roi_heads.detections_per_img = 0.05, 100
    (picture,) = tensors((90, 121))
    (ours,) = cut_off(loaded, [picture], (96, 128))
    (theirs,) = right_answer(loaded, [picture])
    assert len(theirs["scores"]) == len(ours["scores"]) == 100
    assert ours["labels"].tolist() == theirs["labels"].tolist()
    torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=0, atol=1e-4)


def test_mask_rcnn_finds_the_same_things_in_pictures_smaller_than_the_canvas(mask_rcnn, session):
    seen = tensors(*SIZES)
    want_the_same_things(session(seen), right_answer(mask_rcnn, seen))
    assert session.header.inputs == {"pictures": (1, 3, 64, 96), "sizes": (1, 2)}
    assert "leaves out low scores in Python and enlarges the masks" in session.header.notes[0]
    with pytest.raises(ShapeError, match="exported for pictures of 3 x 64 x 96, and sees 3 x 96 x 96"):
        session(tensors((65, 96)))


def test_without_the_pictures_sizes_boxes_would_end_at_the_canvas(mask_rcnn, session):
    (picture,) = tensors((33, 65))
    canvas = stack_padded([picture], (64, 96))
    (right,) = cut_off(mask_rcnn, [picture], (64, 96))
    boxes = {sizes: session.run(canvas, sizes)[0][0] for sizes in (None, ((33, 65),))}
    torch.testing.assert_close(boxes[((33, 65),)][: len(right["boxes"])], right["boxes"], rtol=0, atol=1e-3)
    assert boxes[None][:, 3].max() > 40
    assert right["boxes"][:, 3].max() == 33


def test_where_nothing_can_be_every_place_says_so(session):
    """So does what fills up a batch."""
    boxes, labels, scores, masks = session.run(torch.zeros(1, 3, 64, 96), [(0, 0)])
    assert (scores == -1).all()
    assert [tuple(each.shape) for each in (boxes, labels, masks)] == [(1, 25, 4), (1, 25), (1, 25, 28, 28)]
    assert things_of((boxes[0], labels[0], scores[0], masks[0]), OUTPUTS["mask_rcnn"])["boxes"].shape == (0, 4)


@pytest.mark.parametrize(
    "changed", ["mask_predictor.mask_fcn_logits", "mask_head.1.0", "box_head.fc7", "box_predictor.bbox_pred"]
)
def test_a_changed_weight_of_the_second_stage_is_noticed(changed, session):
    loaded = with_head("mask_rcnn")
    found = verify(session, loaded, pictures(2, (64, 90)))
    assert found.within(TOLERANCES["float32"])
    assert 0 < found.relative < 2e-5
    with torch.no_grad():
        loaded.model.get_parameter(f"detector.roi_heads.{changed}.weight").mul_(1.02)
    found = verify(session, loaded, pictures(2, (64, 90)))
    assert found.agreement > 0.9
    assert not found.within(TOLERANCES["float32"])


def test_where_nothing_scores_enough_what_scores_less_is_compared(session):
    loaded, least = with_head("mask_rcnn"), 0.9999
    header = dataclasses.replace(session.header, model_options={**loaded.options, "box_score_thresh": least})
    empty = ExportedNetwork(header, session._runtime)
    loaded.model.detector.roi_heads.score_thresh = least
    (seen,) = tensors((64, 90))
    assert [len(answer([seen])[0]["scores"]) for answer in (empty, loaded.model)] == [0, 0]
    assert verify(empty, loaded, pictures(2, (64, 90))).within(TOLERANCES["float32"])
    with torch.no_grad():
        loaded.model.get_parameter("detector.roi_heads.mask_predictor.mask_fcn_logits.weight").mul_(1.02)
    assert not verify(empty, loaded, pictures(2, (64, 90))).within(TOLERANCES["float32"])
    assert loaded.model.detector.roi_heads.score_thresh == least


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["onnx", "openvino", "torch-export", COMPILED])
@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_every_format_finds_the_same_things_on_any_canvas(head, format_, tmp_path):
    loaded, seen = with_head(head), tensors(*MANY_SIZES)
    session = reopened(loaded, tmp_path, format_, dynamic=True)
    want_the_same_things(session(seen), right_answer(loaded, seen))
    assert session.header.inputs == {"pictures": (1, 3, None, None), "sizes": (1, 2)}
    assert verify(session, loaded, pictures(3)).within(TOLERANCES["float32"])


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["onnx", "openvino", "torch-export", COMPILED])
def test_several_pictures_at_once_are_those_one_by_one(format_, tmp_path):
    loaded, seen = with_head("mask_rcnn"), tensors(*SIZES)
    session = reopened(loaded, tmp_path, format_, seen=(64, 96), batch_size=2)
    want_the_same_things(session(seen), right_answer(loaded, seen))
    assert session.header.inputs == {"pictures": (2, 3, 64, 96), "sizes": (2, 2)}


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["onnx", "openvino", "torch-export"])
def test_half_finds_the_same_things_but_for_its_rounding(format_, tmp_path):
    """Boxes inside the graph stay in float32, whatever the processor would like."""
    loaded = with_head("mask_rcnn")
    session = reopened(loaded, tmp_path, format_, seen=(64, 96), half=True)
    assert session.header.precision == "float16"
    found = verify(session, loaded, pictures(4, (64, 96)))
    assert found.within(TOLERANCES["float16"])
    assert found.relative > 1e-5  # more than float32's own, so that it is float16 indeed


@pytest.mark.slow
def test_a_predictor_answers_from_the_file_as_from_the_checkpoint(mask_rcnn, tmp_path):
    session = reopened(mask_rcnn, tmp_path, dynamic=True)
    answers = [
        Predictor(dataclasses.replace(mask_rcnn, model=model), device="cpu")(pictures(3))
        for model in (session, mask_rcnn.model)
    ]
    for ours, theirs in zip(*answers, strict=True):
        assert len(theirs.found) > 5
        assert [each.label for each in ours.found] == [each.label for each in theirs.found]
        for one, other in zip(ours.found, theirs.found, strict=True):
            assert one.box == pytest.approx(other.box, abs=1e-2)
            assert (one.mask != other.mask).mean() < 1e-3
