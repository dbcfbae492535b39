"""Theoretical receptive fields equal known values, closed forms, gradients and NaN probes.

Shapes: images (N, C, H, W); a field is the rows and columns that the center cell of a map depends on.
"""

import copy

import pytest
import timm
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from explain.receptive_field_networks import LAYERS, SLOWER, fits, stacked, tiny_van, traced_field
from van.backbones.fusion import fuse
from van.backbones.layers import LKA, Block
from van.explain.receptive_field_tracing import Prober
from van.explain.receptive_fields import STAGES, measure_receptive_fields, theoretical_receptive_fields
from van.ops.dispatch import use_backend
from van.visualization.receptive_fields import Span


def make_positive(model: nn.Module) -> nn.Module:
    """Set positive float64 weights, so that no contributions cancel."""
    for parameter in model.double().parameters():
        nn.init.uniform_(parameter, 0.1, 1)
    return model.eval()


def gradient_field(model: nn.Module, size: tuple[int, int]) -> tuple[Span, Span]:
    """Return the rows and columns with a nonzero gradient of the center cell."""
    x = torch.ones(1, 1, *size, dtype=torch.float64, requires_grad=True)
    with use_backend("reference"):
        found = model(x)
    (gradient,) = torch.autograd.grad(found[0, :, found.shape[2] // 2, found.shape[3] // 2].sum(), x)
    rows, columns = (gradient[0, 0].sum(dim=axis).nonzero().flatten() for axis in (1, 0))
    return Span(int(rows[0]), int(rows[-1])), Span(int(columns[0]), int(columns[-1]))


def probed_field(model: nn.Module, size: tuple[int, int]) -> tuple[Span, Span]:
    model = copy.deepcopy(model).float()
    return Prober(lambda x, count: [model(x)], torch.zeros(1, 1, *size)).spans(0)


def field_sizes(model: nn.Module, **options) -> list[tuple[float, float]]:
    return [(field.rows.length, field.columns.length) for field in theoretical_receptive_fields(model, **options)]


def test_the_field_of_lka_is_23x23_by_tracing_gradient_and_probing():
    attention = make_positive(nn.Sequential(LKA(1)))
    expected = (Span(9, 31), Span(9, 31))
    assert traced_field(attention, (41, 41), "0") == expected
    assert gradient_field(attention, (41, 41)) == expected
    assert probed_field(attention, (41, 41)) == expected


def test_another_dilation_changes_the_field_of_lka():
    assert traced_field(nn.Sequential(LKA(1, dilation=4)).eval(), (41, 41), "0") != (Span(9, 31), Span(9, 31))


@SLOWER
@given(kernel_size=st.integers(1, 40), dilation=st.integers(1, 5) | st.none(), extra=st.integers(1, 3))
def test_the_field_of_any_lka_is_that_of_its_plan(kernel_size, dilation, extra):
    attention = LKA(1, kernel_size=kernel_size, dilation=dilation)
    model = make_positive(nn.Sequential(attention))
    size = (attention.plan.receptive_field + extra, attention.plan.receptive_field + 2 * extra)
    rows, columns = traced_field(model, size, "0")
    assert (rows.length, columns.length) == (attention.plan.receptive_field, attention.plan.receptive_field)
    assert (rows, columns) == gradient_field(model, size)


def test_the_field_of_a_block_is_one_pixel_larger_on_each_side():
    assert traced_field(nn.Sequential(Block(1)).eval(), (41, 41), "0") == (Span(8, 32), Span(8, 32))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@SLOWER
@given(layers=LAYERS, rows=st.integers(60, 71), columns=st.integers(60, 71))
def test_tracing_equals_probing_and_gradient_for_any_stack_of_layers(layers, rows, columns):
    model, size = make_positive(stacked(layers)), (rows, columns)
    assume(fits(model, torch.zeros(1, 1, *size, dtype=torch.float64)))
    by_rule = traced_field(model, size, str(len(layers) - 1))
    inside = zip(by_rule, size, strict=True)
    assume(
        all(span.first >= 12 and span.last < length - 12 for span, length in inside)
    )  # the field does not reach the padding
    assert probed_field(model, size) == by_rule
    if all(kind != "max" for kind, *_ in layers):  # the gradient of max pooling is nonzero for one pixel only
        assert gradient_field(model, size) == by_rule


def test_the_fields_of_resnet18_are_43_99_211_and_435_pixels():
    assert field_sizes(timm.create_model("resnet18").eval()) == [(side, side) for side in (43, 99, 211, 435)]


def expected_field_sizes(
    stem: tuple[int, int], down: tuple[int, int], depths: tuple[int, ...], reach: int
) -> list[int]:
    """Compute sizes for a stem and down-samplings of (kernel, stride), and blocks that reach ``reach`` cells."""
    side, stride, found = 1, 1, []
    for stage, depth in enumerate(depths):
        kernel, step = down if stage else stem
        side += (kernel - 1) * stride
        stride *= step
        side += 2 * reach * depth * stride
        found.append(side)
    return found


def test_the_fields_of_van_b0_equal_the_closed_form():
    """A block reaches 2 + 9 + 1 cells on each side: 5x5, 7x7 dilated by 3, and 3x3 of the feed-forward layer."""
    expected = expected_field_sizes((7, 4), (3, 2), (3, 3, 5, 2), reach=12)
    assert expected == [295, 879, 2815, 4383]
    assert field_sizes(timm.create_model("van_b0").eval()) == [(side, side) for side in expected]


def test_larger_kernels_have_larger_fields():
    """K = 35 is 7x7, then 9x9 dilated by 4: 3 + 16 + 1 cells on each side."""
    expected = expected_field_sizes((7, 4), (3, 2), (1, 1, 1, 1), reach=20)
    assert field_sizes(tiny_van(kernel_size=35)) == [(side, side) for side in expected]
    assert field_sizes(tiny_van()) != field_sizes(tiny_van(kernel_size=35))


def test_the_fields_of_convnext_equal_the_closed_form():
    expected = expected_field_sizes((4, 4), (2, 2), (3, 3, 9, 3), reach=3)
    model = timm.create_model("convnext_atto", depths=(3, 3, 9, 3)).eval()
    assert field_sizes(model) == [(side, side) for side in expected]
    assert expected == [76, 224, 1096, 1688]


def test_traced_fields_do_not_depend_on_the_image_size():
    van = tiny_van()
    assert (
        field_sizes(van, image_size=(32, 32))
        == field_sizes(van, image_size=(67, 101))
        == field_sizes(van, image_size=(224, 224))
    )


def test_a_fused_van_has_the_same_fields():
    van = tiny_van()
    assert field_sizes(fuse(van)) == field_sizes(van)


@pytest.mark.parametrize("size", [(131, 137), (128, 160)])
def test_tracing_equals_probing_on_van_at_odd_sizes(size):
    van = tiny_van()

    def first_stage(x: Tensor, count: int) -> list[Tensor]:
        return [van.block1(van.patch_embed1(x))]

    (field,) = theoretical_receptive_fields(van, ["stage1"], image_size=size)
    probed = Prober(first_stage, torch.zeros(1, 3, *size)).spans(0)
    assert probed == (field.rows, field.columns)
    assert field.rows.length == 103


def through_windows(cell: int, cells: int) -> set[int]:
    """Return the cells that a cell depends on through windows of 4 and, shifted by 2, windows of 4 again."""
    shifted = {(start + step) % cells for start in [(cell - 2) // 4 * 4 + 2] for step in range(4)}
    return {each // 4 * 4 + step for each in shifted for step in range(4)}


def swin_spans(image_px: int) -> list[Span]:
    """Stages 1 and 2 of a Swin with two blocks each, on patches of 4 pixels, merged two by two."""
    cells = image_px // 4
    first = through_windows(cells // 2, cells)
    second = {
        each
        for merged in through_windows(cells // 4, cells // 2)
        for cell in (2 * merged, 2 * merged + 1)
        for each in through_windows(cell, cells)
    }
    return [Span(4 * min(rows), 4 * max(rows) + 3) for rows in (first, second)]


@pytest.mark.parametrize(
    ("image_px", "second"), [(160, Span(48, 143)), (96, Span(0, 95))], ids=["within the image", "around its edge"]
)
def test_the_fields_of_swin_are_its_windows(image_px, second):
    """At 96 pixels a shifted window joins both edges: masked pixels count as read."""
    swin = SwinTransformer(
        img_size=image_px, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(1, 1), num_classes=2
    ).eval()
    fields = theoretical_receptive_fields(swin, STAGES[:2], image_size=(image_px, image_px))
    assert [field.method for field in fields] == ["probed", "probed"]
    assert [field.rows for field in fields] == swin_spans(image_px)
    assert [field.columns for field in fields] == swin_spans(image_px)
    assert (fields[0].rows.length, fields[1].rows) == (32, second)


class Rolled(nn.Module):
    """An operation without a rule."""

    def forward(self, x: Tensor) -> Tensor:
        return x.roll((3, -2), dims=(2, 3))


def test_an_operation_without_a_rule_is_probed():
    model = nn.Sequential(Rolled(), nn.Conv2d(1, 1, (3, 1), padding=(1, 0))).eval()
    (field,) = theoretical_receptive_fields(model, ["1"], image_size=(21, 24), channels=1)
    assert field == (Span(6, 8), Span(14, 14), "probed", (21, 24))


class Spread(nn.Module):
    """Adds one cell, the first, to all: its distance differs for each."""

    def forward(self, x: Tensor) -> Tensor:
        return x + nn.functional.max_pool2d(x, 5, stride=99)


class Transposed(nn.Module):
    """Swaps rows and columns."""

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
def test_operations_outside_the_rules_are_probed(operation, rows, columns):
    (field,) = theoretical_receptive_fields(nn.Sequential(operation).eval(), ["0"], image_size=(11, 13), channels=1)
    assert (field.rows, field.columns, field.method) == (rows, columns, "probed")


class Gated(nn.Module):
    """Squeeze and excitation: every cell depends on the mean of all."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True).sigmoid()


@pytest.mark.parametrize("everything", [Gated(), nn.GroupNorm(1, 4)])
def test_an_operation_over_the_whole_map_makes_the_field_unbounded(everything):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), everything, nn.Conv2d(4, 4, 3)).eval()
    before, after = measure_receptive_fields({"gated": model}, image_size=16, count=1, layers=["0", "2"])
    assert (before.unbounded, after.unbounded) == (False, True)
    assert after.to_dict()["theoretical"]["height"] is None
    assert probed_field(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), everything).eval(), (9, 11)) == (
        Span(0, 8),
        Span(0, 10),
    )
