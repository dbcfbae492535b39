"""Maps of large pictures: bounded memory, no seams, and the very labels of the plain computation."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from van.errors import ShapeError, UsageError
from van.models.segmenters import create_segmenter
from van.models.tiles import label_map, multi_scale_logits, tiled_label_map, upsampled_map


class SmallNetwork(nn.Module):
    """Two convolutions: the same wherever a thing lies, but for 4 pixels at the picture's edge, which see its end."""

    reach_px = 4

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
    return create_segmenter("van_b0", head=head, num_classes=7).eval()


def plain_map(logits: Tensor, *sizes: tuple[int, int]) -> Tensor:
    for size in sizes:
        logits = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    return logits.argmax(0)


@pytest.mark.parametrize("sizes", [((97, 131),), ((40, 53), (97, 131)), ((97, 131), (5, 7)), ((1, 1),), ((13, 17),)])
@pytest.mark.parametrize("max_bytes", [1, 40_000, 200_000, 10**9])
def test_a_map_made_of_some_classes_at_a_time_is_the_plain_one(sizes, max_bytes):
    logits = torch.randn(11, 13, 17, generator=torch.Generator().manual_seed(0))
    found = upsampled_map(logits, *sizes, max_bytes=max_bytes)
    assert found.dtype == torch.int32
    assert found.long().equal(plain_map(logits, *sizes))


def test_of_equal_logits_the_first_class_wins():
    for max_bytes in (1, 10**9):
        assert upsampled_map(torch.zeros(3, 2, 2), (4, 4), max_bytes=max_bytes).eq(0).all()


@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_a_segmenters_map_is_that_of_its_own_logits(head):
    model, x = segmenter(head), torch.randn(3, 70, 90)
    with torch.no_grad():
        wanted = plain_map(model(x[None])[0], (210, 271))
    assert label_map(model, x, size=(210, 271), max_bytes=10**6).long().equal(wanted)


def test_any_network_of_logits_has_a_map():
    model, x = network(), torch.randn(3, 40, 50)
    with torch.no_grad():
        wanted = plain_map(model(x[None])[0], (80, 91))
    assert label_map(model, x, size=(80, 91)).long().equal(wanted)


def near_a_seam(side: int, tile_px: int, step: int) -> Tensor:
    """(side,) whether a pixel lies within the network's reach of the end of some tile that is not the picture's."""
    near = torch.zeros(side, dtype=torch.bool)
    for start in [*range(0, side - tile_px, step), side - tile_px]:
        for end in (start, start + tile_px):
            if 0 < end < side:
                near[max(0, end - SmallNetwork.reach_px) : end + SmallNetwork.reach_px] = True
    return near


@pytest.mark.parametrize("shape", [(300, 217), (128, 400), (97, 96), (96, 96), (50, 200), (1, 7)])
def test_a_picture_seen_in_tiles_has_the_map_of_the_whole(shape):
    """Away from the tiles' ends to the bit; there a tile that knows less weighs at most 4.5 of its 32 faded pixels."""
    model, x = network(), torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        probabilities = model(x[None]).softmax(1)[0]
    found = tiled_label_map(model, x, tile_px=96, overlap=1 / 3).long()
    differs = found != probabilities.argmax(0)
    near = [near_a_seam(side, 96, 64) if side > 96 else torch.zeros(side, dtype=torch.bool) for side in shape]
    assert not differs[~(near[0][:, None] | near[1][None, :])].any()
    first, second = probabilities.topk(2, dim=0).values
    assert not differs[first - second > 2 * 2 * 4.5 / 32].any()
    assert differs.float().mean() < 0.002


def test_tiles_without_an_overlap_would_show_seams():
    """The negative control: with hard edges more than ten times as many pixels differ."""
    model, x = network(), torch.randn(3, 300, 217, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(x[None])[0].argmax(0)
    faded, hard = (tiled_label_map(model, x, tile_px=96, overlap=share).long() for share in (1 / 3, 0.0))
    assert (hard != whole).sum() > 10 * max(1, (faded != whole).sum())


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("shape", [(1, 1), (31, 200), (65, 64), (201, 130)])
def test_every_pixel_is_seen_whatever_the_overlap(overlap, shape):
    """A network of single pixels cannot tell a tile from the whole, so nothing may differ."""
    torch.manual_seed(0)
    model, x = nn.Conv2d(3, 4, 1).eval(), torch.randn(3, *shape)
    found = tiled_label_map(model, x, tile_px=64, overlap=overlap)
    with torch.no_grad():
        assert found.long().equal(model(x[None])[0].argmax(0))


def test_a_segmenter_sees_a_picture_of_one_tile_whole():
    model, x = segmenter("semantic_fpn"), torch.randn(3, 60, 80)
    with torch.no_grad():
        assert tiled_label_map(model, x).long().equal(model(x[None])[0].argmax(0))


MEASURE = """
import resource, sys, torch
from torch import nn
from van.models.tiles import tiled_label_map, label_map
torch.set_num_threads(1)
classes, size = 40, (3000, 4000)
network = nn.Sequential(nn.Conv2d(3, classes, 1)).eval()
picture = torch.rand(3, *size)
tiled_label_map(network, picture[:, :100, :100].contiguous())
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
if sys.argv[1] == "bounded":
    assert label_map(network, picture[:, ::8, ::8].contiguous(), size=size, max_bytes=2**26).shape == size
    print(peak() - before)
    assert tiled_label_map(network, picture).shape == size
else:
    with torch.inference_mode():
        assert network(picture[None])[0].argmax(0).shape == size
print(peak() - before)
"""


@pytest.mark.slow
def test_a_picture_of_12_megapixels_needs_little_memory(run_python):
    """40 classes of float32 are 1.92 GB as a whole; a strip of 512 rows and a third more are 0.44 GB."""
    enlarged, tiled = map(int, run_python(MEASURE, "bounded", OMP_NUM_THREADS="1").split())
    strip = 40 * 512 * 4000 * 4
    assert tiled < 2 * strip + 2**27  # the strip, its shared third, tiles in work, 48 MB of labels
    assert enlarged < 2**26 + 12_000_000 * (4 + 4 + 1) + 2**27


@pytest.mark.slow
def test_the_plain_computation_would_need_all_the_logits(run_python):
    """The negative control of the measure above."""
    assert int(run_python(MEASURE, "plain", OMP_NUM_THREADS="1")) > 40 * 3000 * 4000 * 4 * 0.9


def test_the_mean_over_one_scale_is_the_networks_own_answer():
    model, x = network().double(), torch.randn(3, 33, 47, dtype=torch.float64)
    found = multi_scale_logits(model, x, scales=(1.0,), flip=False)
    with torch.no_grad():
        assert torch.allclose(found.softmax(0), model(x[None])[0].softmax(0), atol=1e-12)


def test_the_mean_is_over_probabilities_at_the_pictures_size():
    model, x = network().double(), torch.randn(3, 33, 47, dtype=torch.float64)
    parts = []
    with torch.no_grad():
        for size in ((16, 24), (33, 47), (58, 82)):  # 0.5, 1 and 1.75 of the sides, rounded
            seen = F.interpolate(x[None], size=size, mode="bilinear", antialias=True)
            for flipped in (False, True):
                logits = model(seen.flip(3) if flipped else seen)
                found = F.interpolate(logits, size=(33, 47), mode="bilinear").softmax(1)[0]
                parts.append(found.flip(2) if flipped else found)
    found = multi_scale_logits(model, x, scales=(0.5, 1.0, 1.75)).softmax(0)
    assert torch.allclose(found, torch.stack(parts).mean(0), atol=1e-12)


def test_with_flips_the_mirrored_picture_has_the_mirrored_answer():
    model, x = network().double(), torch.randn(3, 20, 31, dtype=torch.float64)
    straight, mirrored = multi_scale_logits(model, x), multi_scale_logits(model, x.flip(2)).flip(2)
    assert torch.allclose(straight, mirrored, atol=1e-9)
    alone, other = (multi_scale_logits(model, y, flip=False) for y in (x, x.flip(2)))
    assert not torch.allclose(alone, other.flip(2), atol=1e-3)


def test_an_impossible_class_stays_finite():
    model = nn.Sequential(nn.Conv2d(3, 2, 1)).eval()
    nn.init.zeros_(model[0].weight)
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([0.0, -1000.0]))
    assert multi_scale_logits(model, torch.zeros(3, 8, 8)).isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: label_map(network().train(), x, size=(4, 4)), "SmallNetwork is in training mode"),
        (lambda x: tiled_label_map(network().train(), x), "SmallNetwork is in training mode"),
        (lambda x: multi_scale_logits(network().train(), x), "SmallNetwork is in training mode"),
        (lambda x: tiled_label_map(network(), x, tile_px=0), "tile_px is 0"),
        (lambda x: tiled_label_map(network(), x, overlap=1.0), "overlap 1.0"),
        (lambda x: multi_scale_logits(network(), x, scales=()), r"scales is \(\)"),
        (lambda x: multi_scale_logits(network(), x, scales=(1.0, -1.0)), "positive"),
    ],
)
def test_what_cannot_be_done_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call(torch.zeros(3, 8, 8))


@pytest.mark.parametrize("answers", [lambda x: x[:, :, ::2], lambda x: x.mean((2, 3)), lambda x: [x]])
def test_a_network_of_something_else_than_maps_is_refused(answers):
    class Other(nn.Module):
        def forward(self, x: Tensor) -> object:
            return answers(x)

    with pytest.raises(ShapeError, match=r"the network gives .*; wanted logits \(1, classes, 8, 9\)"):
        tiled_label_map(Other().eval(), torch.zeros(3, 8, 9))


def test_a_map_without_pixels_is_refused():
    with pytest.raises(ShapeError, match="wanted at least one"):
        upsampled_map(torch.zeros(2, 3, 3), (0, 4))
    assert math.prod(upsampled_map(torch.zeros(2, 3, 3), (3, 3)).shape) == 9
