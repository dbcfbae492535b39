"""Sliding-window inference has bounded memory, no seams, and the labels of inference on the whole image."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.errors import ShapeError, UsageError
from van.heads import create_model
from van.heads.sliding_window import multi_scale_logits, sliding_window_label_map, upsample_argmax


class SmallNetwork(nn.Module):
    """Two convolutions, translation-invariant except for 4 pixels at the image's edge, which depend on the padding."""

    reach = 4

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 5, padding=2)
        self.second = nn.Conv2d(8, classes, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return 20 * self.second(F.gelu(self.first(x)))


def network() -> nn.Module:
    return SmallNetwork().eval()


def segmenter(head: str) -> nn.Module:
    torch.manual_seed(0)
    return create_model("van_b0", num_classes=7, options={"head": head, "depths": (1, 1, 1, 1)}).eval()


def plain_map(logits: Tensor, *sizes: tuple[int, int]) -> Tensor:
    for size in sizes:
        logits = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    return logits.argmax(0)


@pytest.mark.parametrize("max_bytes", [1, 40_000, 200_000, 10**9])
def test_upsample_argmax_equals_the_argmax_of_all_resized_logits(max_bytes):
    logits = torch.randn(11, 13, 17, generator=torch.Generator().manual_seed(0))
    for sizes in (((97, 131),), ((40, 53), (97, 131)), ((97, 131), (5, 7)), ((1, 1),), ((13, 17),)):
        labels = upsample_argmax(logits, *sizes, max_bytes=max_bytes)
        assert labels.dtype == torch.int32
        assert labels.long().equal(plain_map(logits, *sizes)), sizes
    # of equal logits the first class
    assert upsample_argmax(torch.zeros(3, 2, 2), (4, 4), max_bytes=max_bytes).eq(0).all()


@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_upsample_argmax_of_a_segmenters_coarse_logits_equals_the_argmax_of_its_output(head):
    model, x = segmenter(head), torch.randn(3, 70, 90)
    with torch.no_grad():
        expected = plain_map(model(x[None])[0], (210, 271))
        coarse = model.forward_head(x[None])[0][0]
    assert upsample_argmax(coarse, (70, 90), (210, 271), max_bytes=10**6).long().equal(expected)


def near_a_seam(side: int, tile_size: int, step: int) -> Tensor:
    """Return (side,) whether a pixel is within the network's reach of a tile's end that is not the image's end."""
    near = torch.zeros(side, dtype=torch.bool)
    for start in [*range(0, side - tile_size, step), side - tile_size]:
        for end in (start, start + tile_size):
            if 0 < end < side:
                near[max(0, end - SmallNetwork.reach) : end + SmallNetwork.reach] = True
    return near


@pytest.mark.parametrize("shape", [(300, 217), (128, 400), (97, 96), (1, 7)])
def test_sliding_window_labels_equal_those_of_the_whole_image(shape):
    """Away from the tiles' ends to the bit; near them a tile without full context has a weight of at most 4.5 / 32."""
    model, x = network(), torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        probabilities = model(x[None]).softmax(1)[0]
    labels = sliding_window_label_map(model, x, tile_size=96, overlap=1 / 3).long()
    differs = labels != probabilities.argmax(0)
    near = [near_a_seam(side, 96, 64) if side > 96 else torch.zeros(side, dtype=torch.bool) for side in shape]
    assert not differs[~(near[0][:, None] | near[1][None, :])].any()
    first, second = probabilities.topk(2, dim=0).values
    assert not differs[first - second > 2 * 2 * 4.5 / 32].any()
    assert differs.float().mean() < 0.002


def test_tiles_without_overlap_show_seams():
    """Negative control: with hard edges more than ten times as many pixels differ."""
    model, x = network(), torch.randn(3, 300, 217, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(x[None])[0].argmax(0)
    blended, hard = (sliding_window_label_map(model, x, tile_size=96, overlap=o).long() for o in (1 / 3, 0.0))
    assert (hard != whole).sum() > 10 * max(1, (blended != whole).sum())


def test_tiles_cover_every_pixel_at_any_overlap():
    """The outputs of a 1x1 convolution do not depend on the tile, so all labels must be equal."""
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 1).eval()
    for overlap, shape in itertools.product((0.0, 0.1, 0.5, 0.8, 0.99), ((1, 1), (31, 200), (65, 64), (201, 130))):
        x = torch.randn(3, *shape)
        labels = sliding_window_label_map(model, x, tile_size=64, overlap=overlap)
        with torch.no_grad():
            assert labels.long().equal(model(x[None])[0].argmax(0)), (overlap, shape)


def test_an_image_smaller_than_a_tile_is_segmented_as_a_whole():
    model, x = segmenter("semantic_fpn"), torch.randn(3, 60, 80)
    with torch.no_grad():
        assert sliding_window_label_map(model, x).long().equal(model(x[None])[0].argmax(0))


MEASURE = """
import resource, sys, torch
from torch import nn
from van.heads.sliding_window import sliding_window_label_map, upsample_argmax
torch.set_num_threads(1)
classes, size = 40, (3000, 4000)
network = nn.Sequential(nn.Conv2d(3, classes, 1)).eval()
image = torch.rand(3, *size)
sliding_window_label_map(network, image[:, :100, :100].contiguous())
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
if sys.argv[1] == "bounded":
    with torch.inference_mode():
        coarse = network(image[None, :, ::8, ::8].contiguous())[0]
        assert upsample_argmax(coarse, size, max_bytes=2**26).shape == size
    print(peak() - before)
    assert sliding_window_label_map(network, image).shape == size
else:
    with torch.inference_mode():
        assert network(image[None])[0].argmax(0).shape == size
print(peak() - before)
"""


@pytest.mark.slow
def test_an_image_of_12_megapixels_needs_the_memory_of_one_row_of_tiles(run_python):
    """40 classes of float32 are 1.92 GB for the whole image; a strip of 512 rows and a third more are 0.44 GB."""
    enlarged, tiled = map(int, run_python(MEASURE, "bounded", OMP_NUM_THREADS="1").split())
    strip = 40 * 512 * 4000 * 4
    assert tiled < 2 * strip + 2**27  # the strip, its shared third, the current tile, 48 MB of labels
    assert enlarged < 2**26 + 12_000_000 * (4 + 4 + 1) + 2**27


@pytest.mark.slow
def test_inference_on_the_whole_image_needs_the_memory_of_all_logits(run_python):
    """Negative control of the measurement above."""
    assert int(run_python(MEASURE, "plain", OMP_NUM_THREADS="1")) > 40 * 3000 * 4000 * 4 * 0.9


def test_multi_scale_of_one_scale_equals_the_networks_output():
    model, x = network().double(), torch.randn(3, 33, 47, dtype=torch.float64)
    logits = multi_scale_logits(model, x, scales=(1.0,), flip=False)
    with torch.no_grad():
        assert torch.allclose(logits.softmax(0), model(x[None])[0].softmax(0), atol=1e-12)


def test_multi_scale_is_the_mean_of_probabilities_at_the_images_size():
    model, x = network().double(), torch.randn(3, 33, 47, dtype=torch.float64)
    expected = []
    with torch.no_grad():
        for size in ((16, 24), (33, 47), (58, 82)):  # 0.5, 1 and 1.75 of the sides, rounded
            scaled = F.interpolate(x[None], size=size, mode="bilinear", antialias=True)
            for flipped in (False, True):
                logits = model(scaled.flip(3) if flipped else scaled)
                probabilities = F.interpolate(logits, size=(33, 47), mode="bilinear").softmax(1)[0]
                expected.append(probabilities.flip(2) if flipped else probabilities)
    mean = multi_scale_logits(model, x, scales=(0.5, 1.0, 1.75)).softmax(0)
    assert torch.allclose(mean, torch.stack(expected).mean(0), atol=1e-12)


def test_multi_scale_with_flips_is_equivariant_to_flips():
    model, x = network().double(), torch.randn(3, 20, 31, dtype=torch.float64)
    straight, flipped = multi_scale_logits(model, x), multi_scale_logits(model, x.flip(2)).flip(2)
    assert torch.allclose(straight, flipped, atol=1e-9)
    # negative control: without flips it is not
    straight, flipped = (multi_scale_logits(model, y, flip=False) for y in (x, x.flip(2)))
    assert not torch.allclose(straight, flipped.flip(2), atol=1e-3)


def test_multi_scale_logits_of_a_probability_of_zero_are_finite():
    model = nn.Sequential(nn.Conv2d(3, 2, 1)).eval()
    nn.init.zeros_(model[0].weight)
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([0.0, -1000.0]))
    assert multi_scale_logits(model, torch.zeros(3, 8, 8)).isfinite().all()


def test_invalid_arguments_and_training_mode_are_refused():
    x = torch.zeros(3, 8, 8)
    for call, message in (
        (lambda: sliding_window_label_map(network().train(), x), "SmallNetwork.*training mode"),
        (lambda: multi_scale_logits(network().train(), x), "SmallNetwork.*training mode"),
        (lambda: sliding_window_label_map(network(), x, tile_size=0), "tile_size.* 0"),
        (lambda: sliding_window_label_map(network(), x, overlap=1.0), "overlap.* 1.0"),
        (lambda: multi_scale_logits(network(), x, scales=()), r"scales.*\(\)"),
        (lambda: multi_scale_logits(network(), x, scales=(1.0, -1.0)), r"scales.*\(1.0, -1.0\)"),
    ):
        with pytest.raises(UsageError, match=message):
            call()


def test_a_network_whose_output_is_no_logits_of_the_images_size_is_refused():
    class Other(nn.Module):
        def __init__(self, output_of: Any) -> None:
            super().__init__()
            self.output_of = output_of

        def forward(self, x: Tensor) -> object:
            return self.output_of(x)

    for output_of in (lambda x: x[:, :, ::2], lambda x: x.mean((2, 3)), lambda x: [x]):
        with pytest.raises(ShapeError, match=r"\(1, classes, 8, 9\)"):
            sliding_window_label_map(Other(output_of).eval(), torch.zeros(3, 8, 9))


def test_a_map_without_pixels_is_refused():
    with pytest.raises(ShapeError, match=r"sizes.*\(0, 4\)"):
        upsample_argmax(torch.zeros(2, 3, 3), (0, 4))
    assert math.prod(upsample_argmax(torch.zeros(2, 3, 3), (3, 3)).shape) == 9
