"""Box operators with static shapes equal torchvision's, in PyTorch and in other runtimes."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, batched_nms, box_area, clip_boxes_to_image

from van.export.suppress_output import import_without_telemetry
from van.export.writing import reference_graph
from van.heads.two_stage import assign_levels, clip_boxes, multiscale_roi_align, nms_mask, offset_by_class

STRIDES = (4, 8, 16, 32)
ODD_BOXES = torch.tensor(
    [
        [0, 0, 0, 0],
        [5, 5, 5, 40],
        [3.3, 4.7, 3.4, 4.9],
        [0, 0, 160, 128],
        [159.9, 127.9, 160, 128],
        [31.99, 0.01, 160, 16],
        [10, 10, 26, 26],
        [64, 64, 192, 192],
        [0, 0, 63.999, 63.999],
        [0.5, 100.25, 159.5, 103.75],
    ]
)
"""Without area, thinner than a feature cell, whole images, beyond the edge, and on the bounds between levels."""


def pooling(side: int = 7) -> MultiScaleRoIAlign:
    """Return the detectors' pooling with a scale for smaller boxes."""
    return MultiScaleRoIAlign([str(place) for place in range(4)], side, 2, canonical_scale=48)


def pyramid(images: int = 1) -> list[Tensor]:
    """Return four levels for images of 128 x 160 pixels."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(images, 5, 128 // stride, 160 // stride, generator=generator) for stride in STRIDES]


def random_boxes(count: int, seed: int = 0) -> Tensor:
    """Return boxes inside 128 x 160 pixels, many of them overlapping."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(count, 2, generator=generator) * torch.tensor([140.0, 110.0])
    sides = torch.rand(count, 2, generator=generator).exp() * 12
    return clip_boxes_to_image(torch.cat([first, first + sides], dim=1), (128, 160))


def test_boxes_are_clipped_to_their_own_image():
    boxes = torch.stack([ODD_BOXES - 20, ODD_BOXES])
    expected = [clip_boxes_to_image(boxes[0], (50, 70)), clip_boxes_to_image(boxes[1], (128, 33))]
    torch.testing.assert_close(clip_boxes(boxes, torch.tensor([[50.0, 70.0], [128.0, 33.0]])), torch.stack(expected))


def test_each_box_is_pooled_from_torchvisions_level():
    """Several images; every level has its boxes, and one may have none."""
    boxes = torch.stack([ODD_BOXES, ODD_BOXES.flip(0)])
    level = assign_levels(boxes.flatten(0, 1), pooling(), STRIDES)
    assert sorted(set(level.tolist())) == [0, 1, 2, 3]
    maps = dict(zip(pooling().featmap_names, pyramid(2), strict=True))
    expected = pooling()(maps, list(boxes), [(128, 160)] * 2)
    pooled = multiscale_roi_align(pyramid(2), boxes, level, strides=STRIDES, output_size=(7, 7), sampling_ratio=2)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=0)
    small = boxes[:, 2:3]
    level = assign_levels(small.flatten(0, 1), pooling(), STRIDES)
    pooled = multiscale_roi_align(pyramid(2), small, level, strides=STRIDES, output_size=(7, 7), sampling_ratio=2)
    torch.testing.assert_close(pooled, expected.unflatten(0, (2, -1))[:, 2], rtol=0, atol=0)


@pytest.mark.parametrize("selection", ["all", "some", "one", "none"])
def test_nms_per_class_keeps_the_boxes_of_torchvision(selection):
    boxes = torch.stack([random_boxes(90), random_boxes(90, seed=1)])
    generator = torch.Generator().manual_seed(2)
    scores = (torch.rand(2, 90, generator=generator) * 20).round() / 20  # with ties
    labels = torch.randint(0, 3, (2, 90), generator=generator)
    threshold = {"all": 0.0, "some": 0.5, "one": 0.0, "none": 2.0}[selection]
    valid = torch.rand(2, 90, generator=generator) >= threshold
    if selection == "one":
        valid = torch.arange(90).expand(2, 90) == 7
    kept = nms_mask(offset_by_class(boxes, valid, labels), scores, valid, iou_threshold=0.3)
    for row in range(2):
        indices = valid[row].nonzero().flatten()
        expected = indices[batched_nms(boxes[row][indices], scores[row][indices], labels[row][indices], 0.3)]
        assert sorted(expected.tolist()) == kept[row].nonzero().flatten().tolist()
    if selection == "all":
        assert 10 < kept[0].sum() < 80
        class_agnostic = nms_mask(boxes, scores, valid, iou_threshold=0.3)
        assert class_agnostic.sum() < kept.sum()  # so the classes matter


def test_nms_keeps_one_box_that_suppresses_all_others():
    """PyTorch's exporter assumes that at least two are kept."""
    boxes = torch.tensor([[[10.0, 10, 50, 50]] * 6])
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.9, 0.3, 0.2]])
    kept = nms_mask(boxes, scores, torch.ones(1, 6, dtype=torch.bool), iou_threshold=0.5)
    assert kept.tolist() == [[False, False, False, True, False, False]]


class _PoolAndSuppress(nn.Module):
    def forward(self, finest: Tensor, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        level = assign_levels(boxes.flatten(0, 1), pooling(), STRIDES)
        maps = [finest, *(nn.functional.max_pool2d(finest, 2**place) for place in (1, 2, 3))]
        valid = scores >= 0.2
        pooled = multiscale_roi_align(maps, boxes, level, strides=STRIDES, output_size=(7, 7), sampling_ratio=2)
        return pooled, nms_mask(boxes, scores, valid, iou_threshold=0.5).float()


@pytest.fixture(scope="module")
def translated(tmp_path_factory):
    """Return an ONNX file of both operators."""
    from van.export.onnx import translate

    count = len(ODD_BOXES) + 90
    with reference_graph():
        example = (pyramid()[0], random_boxes(count)[None], torch.rand(1, count))
        program = torch.export.export(_PoolAndSuppress(), example)
    path = tmp_path_factory.mktemp("onnx") / "operators.onnx"
    translate(program, ["pooled", "kept"], inputs=["finest", "boxes", "scores"]).save(path, external_data=False)
    return path


def _by_onnxruntime(path, inputs):
    runtime = import_without_telemetry("onnxruntime", purpose="a test")
    return runtime.InferenceSession(str(path)).run(None, inputs)


def _by_openvino(path, inputs):
    openvino = import_without_telemetry("openvino", purpose="a test")
    core = openvino.Core()
    outputs = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)
    return [outputs[0], outputs[1]]


@pytest.mark.parametrize("runtime", [_by_onnxruntime, _by_openvino])
def test_other_runtimes_pool_and_suppress_edge_case_boxes_as_pytorch(runtime, translated):
    boxes = torch.cat([ODD_BOXES, random_boxes(90)])[None]
    scores = torch.rand(1, boxes.shape[1], generator=torch.Generator().manual_seed(3))
    inputs = (pyramid()[0], boxes, scores)
    pooled, kept = _PoolAndSuppress()(*inputs)
    assert 20 < kept.sum() < 70
    assert (box_area(boxes[0]) == 0).any()
    arrays = {name: values.numpy() for name, values in zip(("finest", "boxes", "scores"), inputs, strict=True)}
    outputs = [torch.from_numpy(output) for output in runtime(translated, arrays)]
    torch.testing.assert_close(outputs[0], pooled, rtol=0, atol=1e-5)
    assert torch.equal(outputs[1], kept)
    _, none_kept = runtime(translated, {**arrays, "scores": 0 * arrays["scores"]})
    assert not none_kept.any()
