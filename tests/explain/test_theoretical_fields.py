"""What a cell can read is what known numbers, formulas worked out here, gradients and NaN say it is.

Pictures (N, C, H, W); a field is the rows and columns that the middle cell of a map reads.
"""

import copy

import pytest
import timm
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from explain.field_networks import LAYERS, SLOWER, fits, read_by_rule, stacked, tiny_van
from van.explain.receptive_fields import STAGES, measure_fields, theoretical_fields
from van.explain.theoretical_fields import Prober
from van.models.deploy import fuse
from van.models.layers import LKA, Block
from van.ops.dispatch import use_backend
from van.results.fields import Span


def make_positive(model: nn.Module) -> nn.Module:
    """In float64, nothing that is read can cancel."""
    for parameter in model.double().parameters():
        nn.init.uniform_(parameter, 0.1, 1)
    return model.eval()


def read_by_gradient(model: nn.Module, size: tuple[int, int]) -> tuple[Span, Span]:
    """Rows and columns that the middle cell's gradient is not zero by."""
    x = torch.ones(1, 1, *size, dtype=torch.float64, requires_grad=True)
    with use_backend("reference"):
        found = model(x)
    (gradient,) = torch.autograd.grad(found[0, :, found.shape[2] // 2, found.shape[3] // 2].sum(), x)
    rows, columns = (gradient[0, 0].sum(dim=axis).nonzero().flatten() for axis in (1, 0))
    return Span(int(rows[0]), int(rows[-1])), Span(int(columns[0]), int(columns[-1]))


def read_by_probing(model: nn.Module, size: tuple[int, int]) -> tuple[Span, Span]:
    model = copy.deepcopy(model).float()
    return Prober(lambda x, wanted: [model(x)], torch.zeros(1, 1, *size)).spans(0)


def sides(model: nn.Module, **options) -> list[tuple[float, float]]:
    return [(field.rows.length, field.columns.length) for field in theoretical_fields(model, **options)]


def test_one_lka_reads_23_by_23_pixels_by_rule_by_gradient_and_by_probing():
    attention = make_positive(nn.Sequential(LKA(1)))
    wanted = (Span(9, 31), Span(9, 31))
    assert read_by_rule(attention, (41, 41), "0") == wanted
    assert read_by_gradient(attention, (41, 41)) == wanted
    assert read_by_probing(attention, (41, 41)) == wanted


def test_another_dilation_changes_what_an_lka_reads():
    assert read_by_rule(nn.Sequential(LKA(1, dilation=4)).eval(), (41, 41), "0") != (Span(9, 31), Span(9, 31))


@SLOWER
@given(kernel_size=st.integers(1, 40), dilation=st.integers(1, 5) | st.none(), extra=st.integers(1, 3))
def test_an_lka_of_any_kernel_size_reads_what_its_plan_says(kernel_size, dilation, extra):
    attention = LKA(1, kernel_size=kernel_size, dilation=dilation)
    model = make_positive(nn.Sequential(attention))
    size = (attention.plan.reach_px + extra, attention.plan.reach_px + 2 * extra)
    rows, columns = read_by_rule(model, size, "0")
    assert (rows.length, columns.length) == (attention.plan.reach_px, attention.plan.reach_px)
    assert (rows, columns) == read_by_gradient(model, size)


def test_a_block_reads_one_pixel_more_on_each_side_than_its_lka():
    assert read_by_rule(nn.Sequential(Block(1)).eval(), (41, 41), "0") == (Span(8, 32), Span(8, 32))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@SLOWER
@given(layers=LAYERS, rows=st.integers(60, 71), columns=st.integers(60, 71))
def test_any_stack_of_convolutions_and_pools_reads_what_the_rule_says(layers, rows, columns):
    model, size = make_positive(stacked(layers)), (rows, columns)
    assume(fits(model, torch.zeros(1, 1, *size, dtype=torch.float64)))
    by_rule = read_by_rule(model, size, str(len(layers) - 1))
    inside = zip(by_rule, size, strict=True)
    assume(all(span.first >= 12 and span.last < length - 12 for span, length in inside))  # no padding is read
    assert read_by_probing(model, size) == by_rule
    if all(kind != "max" for kind, *_ in layers):  # whose gradient shows one pixel of all that it compares
        assert read_by_gradient(model, size) == by_rule


def test_resnet_18_reads_43_99_211_and_435_pixels():
    assert sides(timm.create_model("resnet18").eval()) == [(side, side) for side in (43, 99, 211, 435)]


def expected_sides(stem: tuple[int, int], down: tuple[int, int], depths: tuple[int, ...], reach: int) -> list[int]:
    """By hand: a stem and down-samplings of (kernel, stride), and blocks that read ``reach`` cells on each side."""
    side, stride, found = 1, 1, []
    for stage, depth in enumerate(depths):
        kernel, step = down if stage else stem
        side += (kernel - 1) * stride
        stride *= step
        side += 2 * reach * depth * stride
        found.append(side)
    return found


def test_van_b0_reads_as_many_pixels_as_its_table_of_kernels_says():
    """A block reads 2 + 9 + 1 cells on each side: 5x5, 7x7 by 3, and the 3x3 of the feed-forward part."""
    wanted = expected_sides((7, 4), (3, 2), (3, 3, 5, 2), reach=12)
    assert wanted == [295, 879, 2815, 4383]
    assert sides(timm.create_model("van_b0").eval()) == [(side, side) for side in wanted]


def test_a_van_with_larger_kernels_reads_more():
    """K = 35 is 7x7, then 9x9 dilated by 4: 3 + 16 + 1 cells on each side."""
    wanted = expected_sides((7, 4), (3, 2), (1, 1, 1, 1), reach=20)
    assert sides(tiny_van(kernel_size=35)) == [(side, side) for side in wanted]
    assert sides(tiny_van()) != sides(tiny_van(kernel_size=35))


def test_convnext_reads_what_its_7x7_kernels_reach():
    wanted = expected_sides((4, 4), (2, 2), (3, 3, 9, 3), reach=3)
    model = timm.create_model("convnext_atto", depths=(3, 3, 9, 3)).eval()
    assert sides(model) == [(side, side) for side in wanted]
    assert wanted == [76, 224, 1096, 1688]


def test_what_can_be_read_does_not_depend_on_the_pictures_size():
    van = tiny_van()
    assert sides(van, size=(32, 32)) == sides(van, size=(67, 101)) == sides(van, size=(224, 224))


def test_a_fused_van_reads_what_it_read_before():
    van = tiny_van()
    assert sides(fuse(van)) == sides(van)


@pytest.mark.parametrize("size", [(131, 137), (128, 160)])
def test_the_rule_and_the_probe_agree_on_a_van_at_odd_sizes(size):
    van = tiny_van()

    def first_stage(x: Tensor, wanted: int) -> list[Tensor]:
        return [van.block1(van.patch_embed1(x))]

    (field,) = theoretical_fields(van, ["stage1"], size=size)
    probed = Prober(first_stage, torch.zeros(1, 3, *size)).spans(0)
    assert probed == (field.rows, field.columns)
    assert field.rows.length == 103


def through_windows(cell: int, cells: int) -> set[int]:
    """By hand: what a cell reads through windows of 4 and then, the map rolled by 2, through windows of 4 again."""
    shifted = {(start + step) % cells for start in [(cell - 2) // 4 * 4 + 2] for step in range(4)}
    return {each // 4 * 4 + step for each in shifted for step in range(4)}


def swin_spans(side_px: int) -> list[Span]:
    """Stages 1 and 2 of a Swin with two blocks each, on patches of 4 pixels, merged two by two."""
    cells = side_px // 4
    first = through_windows(cells // 2, cells)
    second = {
        each
        for merged in through_windows(cells // 4, cells // 2)
        for cell in (2 * merged, 2 * merged + 1)
        for each in through_windows(cell, cells)
    }
    return [Span(4 * min(rows), 4 * max(rows) + 3) for rows in (first, second)]


@pytest.mark.parametrize(
    ("side_px", "second"), [(160, Span(48, 143)), (96, Span(0, 95))], ids=["within the picture", "around its edge"]
)
def test_swin_reads_the_windows_that_its_cells_went_through(side_px, second):
    """At 96 pixels a rolled window joins both edges: what its mask hides counts as read."""
    swin = SwinTransformer(
        img_size=side_px, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(1, 1), num_classes=2
    ).eval()
    fields = theoretical_fields(swin, STAGES[:2], size=(side_px, side_px))
    assert [field.how for field in fields] == ["probed", "probed"]
    assert [field.rows for field in fields] == swin_spans(side_px)
    assert [field.columns for field in fields] == swin_spans(side_px)
    assert (fields[0].rows.length, fields[1].rows) == (32, second)


class Rolled(nn.Module):
    """An operation for which there is no rule."""

    def forward(self, x: Tensor) -> Tensor:
        return x.roll((3, -2), dims=(2, 3))


def test_an_operation_without_a_rule_is_probed():
    model = nn.Sequential(Rolled(), nn.Conv2d(1, 1, (3, 1), padding=(1, 0))).eval()
    (field,) = theoretical_fields(model, ["1"], size=(21, 24), channels=1)
    assert field == (Span(6, 8), Span(14, 14), "probed", (21, 24))


class Spread(nn.Module):
    """One cell, the first, added to all: it stands at another distance from each."""

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.max_pool2d(x, 5, stride=99)


class Transposed(nn.Module):
    """Rows become columns."""

    def __init__(self, **axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(**self.axes) if self.axes else x.transpose(2, 3)


@pytest.mark.parametrize(
    ("operation", "rows", "columns"),
    [
        (Spread(), Span(0, 5), Span(0, 6)),
        (Transposed(), Span(5, 5), Span(6, 6)),
        (Transposed(dim0=2, dim1=3), Span(5, 5), Span(6, 6)),
        (nn.Upsample(scale_factor=2), Span(5, 5), Span(6, 6)),
    ],
)
def test_a_rule_is_not_stretched_to_what_it_does_not_cover(operation, rows, columns):
    (field,) = theoretical_fields(nn.Sequential(operation).eval(), ["0"], size=(11, 13), channels=1)
    assert (field.rows, field.columns, field.how) == (rows, columns, "probed")


class Gated(nn.Module):
    """Squeeze and excitation: every cell sees the mean of all."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True).sigmoid()


@pytest.mark.parametrize("everything", [Gated(), nn.GroupNorm(1, 4)])
def test_an_operation_over_the_whole_map_makes_the_field_unbounded(everything):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), everything, nn.Conv2d(4, 4, 3)).eval()
    before, after = measure_fields({"gated": model}, size_px=16, count=1, layers=["0", "2"])
    assert (before.unbounded, after.unbounded) == (False, True)
    assert after.to_dict()["theoretical"]["rows"] is None
    assert read_by_probing(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), everything).eval(), (9, 11)) == (
        Span(0, 8),
        Span(0, 10),
    )
