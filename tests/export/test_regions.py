"""What is done with boxes in a graph of fixed sizes is what torchvision does, and what other runtimes make of it."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, batched_nms, box_area, clip_boxes_to_image

from van.export.quiet import quiet_import
from van.export.regions import apart, clipped, level_of, only_the_best, pool
from van.export.writing import plain_graph

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
"""Without area, thinner than a cell, whole pictures, over the edge, and on the borders between levels."""


def pooling(side: int = 7) -> MultiScaleRoIAlign:
    """As the detectors here have it, for smaller boxes."""
    return MultiScaleRoIAlign([str(place) for place in range(4)], side, 2, canonical_scale=48)


def pyramid(pictures: int = 1) -> list[Tensor]:
    """Four levels over pictures of 128 x 160 pixels."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(pictures, 5, 128 // stride, 160 // stride, generator=generator) for stride in STRIDES]


def random_boxes(count: int, seed: int = 0) -> Tensor:
    """Inside 128 x 160 pixels, many of them overlapping."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(count, 2, generator=generator) * torch.tensor([140.0, 110.0])
    sides = torch.rand(count, 2, generator=generator).exp() * 12
    return clip_boxes_to_image(torch.cat([first, first + sides], dim=1), (128, 160))


def test_boxes_end_at_their_own_picture():
    boxes = torch.stack([ODD_BOXES - 20, ODD_BOXES])
    right = [clip_boxes_to_image(boxes[0], (50, 70)), clip_boxes_to_image(boxes[1], (128, 33))]
    torch.testing.assert_close(clipped(boxes, torch.tensor([[50.0, 70.0], [128.0, 33.0]])), torch.stack(right))


def test_each_box_is_pooled_from_torchvisions_level():
    """Several pictures; every level has its boxes, and one may have none."""
    boxes = torch.stack([ODD_BOXES, ODD_BOXES.flip(0)])
    level = level_of(boxes.flatten(0, 1), pooling(), STRIDES)
    assert sorted(set(level.tolist())) == [0, 1, 2, 3]
    named = dict(zip(pooling().featmap_names, pyramid(2), strict=True))
    right = pooling()(named, list(boxes), [(128, 160)] * 2)
    found = pool(pyramid(2), boxes, level, strides=STRIDES, side=(7, 7), samples=2)
    torch.testing.assert_close(found, right, rtol=0, atol=0)
    small = boxes[:, 2:3]
    level = level_of(small.flatten(0, 1), pooling(), STRIDES)
    found = pool(pyramid(2), small, level, strides=STRIDES, side=(7, 7), samples=2)
    torch.testing.assert_close(found, right.unflatten(0, (2, -1))[:, 2], rtol=0, atol=0)


@pytest.mark.parametrize("real", ["all", "some", "one", "none"])
def test_of_each_kind_the_same_boxes_remain_as_by_torchvision(real):
    boxes = torch.stack([random_boxes(90), random_boxes(90, seed=1)])
    generator = torch.Generator().manual_seed(2)
    scores = (torch.rand(2, 90, generator=generator) * 20).round() / 20  # some are alike
    kinds = torch.randint(0, 3, (2, 90), generator=generator)
    chosen = {"all": 0.0, "some": 0.5, "one": 0.0, "none": 2.0}[real]
    which = torch.rand(2, 90, generator=generator) >= chosen
    if real == "one":
        which = torch.arange(90).expand(2, 90) == 7
    found = only_the_best(apart(boxes, which, kinds), scores, which, threshold=0.3)
    for row in range(2):
        places = which[row].nonzero().flatten()
        kept = places[batched_nms(boxes[row][places], scores[row][places], kinds[row][places], 0.3)]
        assert sorted(kept.tolist()) == found[row].nonzero().flatten().tolist()
    if real == "all":
        assert 10 < found[0].sum() < 80
        together = only_the_best(boxes, scores, which, threshold=0.3)
        assert together.sum() < found.sum()  # kinds matter


def test_where_one_box_puts_out_all_others_it_remains():
    """PyTorch's exporter takes it for granted that at least two do."""
    boxes = torch.tensor([[[10.0, 10, 50, 50]] * 6])
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.9, 0.3, 0.2]])
    found = only_the_best(boxes, scores, torch.ones(1, 6, dtype=torch.bool), threshold=0.5)
    assert found.tolist() == [[False, False, False, True, False, False]]


class _Both(nn.Module):
    def forward(self, finest: Tensor, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        level = level_of(boxes.flatten(0, 1), pooling(), STRIDES)
        maps = [finest, *(nn.functional.max_pool2d(finest, 2**place) for place in (1, 2, 3))]
        real = scores >= 0.2
        pooled = pool(maps, boxes, level, strides=STRIDES, side=(7, 7), samples=2)
        return pooled, only_the_best(boxes, scores, real, threshold=0.5).float()


@pytest.fixture(scope="module")
def translated(tmp_path_factory):
    """An ONNX file of both operators."""
    from van.export.onnx import translate

    count = len(ODD_BOXES) + 90
    with plain_graph():
        example = (pyramid()[0], random_boxes(count)[None], torch.rand(1, count))
        program = torch.export.export(_Both(), example)
    path = tmp_path_factory.mktemp("onnx") / "both.onnx"
    translate(program, ["pooled", "kept"], inputs=["finest", "boxes", "scores"]).save(path, external_data=False)
    return path


def _by_onnxruntime(path, inputs):
    runtime = quiet_import("onnxruntime", purpose="a test")
    return runtime.InferenceSession(str(path)).run(None, inputs)


def _by_openvino(path, inputs):
    openvino = quiet_import("openvino", purpose="a test")
    core = openvino.Core()
    found = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)
    return [found[0], found[1]]


@pytest.mark.parametrize("runtime", [_by_onnxruntime, _by_openvino])
def test_other_runtimes_pool_and_thin_out_odd_boxes_alike(runtime, translated):
    boxes = torch.cat([ODD_BOXES, random_boxes(90)])[None]
    scores = torch.rand(1, boxes.shape[1], generator=torch.Generator().manual_seed(3))
    inputs = (pyramid()[0], boxes, scores)
    pooled, kept = _Both()(*inputs)
    assert 20 < kept.sum() < 70
    assert (box_area(boxes[0]) == 0).any()
    named = {name: values.numpy() for name, values in zip(("finest", "boxes", "scores"), inputs, strict=True)}
    found = [torch.from_numpy(each) for each in runtime(translated, named)]
    torch.testing.assert_close(found[0], pooled, rtol=0, atol=1e-5)
    assert torch.equal(found[1], kept)
    nothing = runtime(translated, {**named, "scores": 0 * named["scores"]})
    assert not nothing[1].any()
