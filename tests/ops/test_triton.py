"""The Triton operators against the definition in float64: outputs and gradients, in Triton's interpreter on the CPU.

The same cases run on a GPU with ``pytest -m gpu``. Shapes are tiny because the interpreter takes milliseconds for what
a GPU does in nanoseconds.
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from van.errors import ShapeError
from van.ops import Kernel, reference, triton_tiling
from van.ops import triton as operators
from van.ops.triton_tiling import Tiling

pytest.importorskip("triton")
MODULES = ("van.ops.triton_kernels", "van.ops.triton_rows")
TOLERANCES = {
    torch.float32: 2e-6,  # sums of some hundred products of order one; relative to the largest, as all of these
    torch.bfloat16: 3 * 2**-8,  # rounded to 8 bits: the answer, and the map between or before it, with all it reaches
    torch.float16: 3 * 2**-11,  # the same with 11 bits
}
DEPTHWISE = [  # pictures, channels, rows, columns, kernel rows, kernel columns, dilation
    (1, 1, 1, 1, 7, 7, 3), (2, 16, 7, 7, 7, 7, 3), (3, 5, 11, 8, 7, 7, 3), (1, 37, 1, 31, 7, 7, 3),
    (1, 33, 29, 1, 5, 5, 1), (17, 2, 5, 6, 5, 5, 2), (2, 3, 4, 19, 3, 3, 4), (1, 16, 3, 3, 21, 21, 1),
    (1, 70, 5, 17, 3, 3, 1), (2, 3, 9, 8, 3, 7, 2), (1, 2, 11, 6, 5, 1, 1),
]  # fmt: skip
PAIRS = [(1, 3, 1, 1), (2, 16, 7, 7), (1, 2, 9, 11), (1, 5, 3, 23)]  # 5x5, then 7x7 dilated by 3
FEED_FORWARD = [(1, 1, 1, 1), (2, 5, 7, 7), (1, 70, 5, 3), (3, 2, 8, 9), (2, 16, 2, 19)]  # 3x3
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@contextlib.contextmanager
def kernels_of(interpreted: bool) -> Iterator[None]:
    """Import the kernels anew, for the interpreter or for a GPU, and leave no trace of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1" if interpreted else "0")
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        for name in reversed(MODULES):
            importlib.import_module(name)
        try:
            yield
        finally:
            for name in MODULES:
                sys.modules.pop(name)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels_of(interpreted=request.param == "cpu"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "DEVICE", request.param)
        yield request.param


DEVICE = "cpu"


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def drawn_kernel(channels: int, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return drawn(channels, 1, rows, columns, dtype=dtype) / (rows * columns) ** 0.5, drawn(channels, dtype=dtype)


def double(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def assert_near(found: list[Tensor], wanted: list[Tensor], dtype: torch.dtype = torch.float32) -> None:
    for mine, right in zip(found, wanted, strict=True):
        scale = max(1.0, right.detach().abs().max().item()) if right.numel() else 1.0
        torch.testing.assert_close(mine.double(), right, rtol=0, atol=TOLERANCES[dtype] * scale)


def with_gradients(out: Tensor, inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    return [out, *torch.autograd.grad(out, inputs, gradient.double(), materialize_grads=True)]


def of_depthwise(x: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor, dilation: int) -> list[Tensor]:
    """Output and gradients by x, weight and bias."""
    out = operators.depthwise(x, weight, bias, dilation)
    return [out, *operators.depthwise_backward(gradient, x, weight, dilation)]


def right_depthwise(x: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor, dilation: int) -> list[Tensor]:
    inputs = double(x, weight, bias)
    return with_gradients(reference.depthwise(inputs[0], Kernel(*inputs[1:], dilation)), inputs, gradient)


def of_pair(x: Tensor, local: tuple, dilated: tuple, gradient: Tensor) -> list[Tensor]:
    out = operators.lka_pair(x, *local, *dilated, 3)
    return [out, *operators.lka_pair_backward(gradient, x, *local, dilated[0], 3)]


def right_pair(x: Tensor, local: tuple, dilated: tuple, gradient: Tensor) -> list[Tensor]:
    inputs = double(x, *local, *dilated)
    seen = reference.depthwise(inputs[0], Kernel(*inputs[1:3]))
    return with_gradients(reference.depthwise(seen, Kernel(*inputs[3:], 3)), inputs, gradient)


def of_gelu(x: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor) -> list[Tensor]:
    return [
        operators.depthwise_gelu(x, weight, bias),
        *operators.depthwise_gelu_backward(gradient, x, weight, bias),
    ]


def right_gelu(x: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor) -> list[Tensor]:
    inputs = double(x, weight, bias)
    return with_gradients(F.gelu(reference.depthwise(inputs[0], Kernel(*inputs[1:]))), inputs, gradient)


def depthwise_case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple:
    """x, weight, bias, gradient and dilation."""
    return (drawn(*shape[:4], dtype=dtype), *drawn_kernel(shape[1], *shape[4:6], dtype),
            drawn(*shape[:4], dtype=dtype, seed=1), shape[6])  # fmt: skip


def pair_case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple:
    kernels = drawn_kernel(shape[1], 5, 5, dtype), drawn_kernel(shape[1], 7, 7, dtype)
    return drawn(*shape, dtype=dtype), *kernels, drawn(*shape, dtype=dtype, seed=1)


def gelu_case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, side: int = 3) -> tuple:
    return drawn(*shape, dtype=dtype), *drawn_kernel(shape[1], side, side, dtype), drawn(*shape, dtype=dtype, seed=1)


@pytest.mark.parametrize("shape", DEPTHWISE)
def test_depthwise_and_its_gradients_are_those_of_the_definition(shape):
    case = depthwise_case(shape)
    assert_near(of_depthwise(*case), right_depthwise(*case))


@pytest.mark.parametrize("shape", PAIRS)
def test_the_pair_and_its_gradients_are_those_of_the_definition(shape):
    case = pair_case(shape)
    assert_near(of_pair(*case), right_pair(*case))


@pytest.mark.parametrize("shape", FEED_FORWARD)
def test_depthwise_gelu_and_its_gradients_are_those_of_the_definition(shape):
    case = gelu_case(shape)
    assert_near(of_gelu(*case), right_gelu(*case))


def test_gelu_follows_any_odd_kernel():
    for side in (1, 5):
        case = gelu_case((1, 3, 6, 9), side=side)
        assert_near(of_gelu(*case), right_gelu(*case))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_are_summed_in_float32(dtype):
    for found, wanted, case in (
        (of_depthwise, right_depthwise, depthwise_case((2, 4, 5, 8, 7, 7, 3), dtype)),
        (of_pair, right_pair, pair_case((2, 4, 4, 5), dtype)),
        (of_gelu, right_gelu, gelu_case((2, 4, 4, 5), dtype)),
    ):
        answers = found(*case)
        assert {answer.dtype for answer in answers} == {dtype}
        assert_near(answers, wanted(*case), dtype)


def test_weights_may_be_wider_than_the_map():
    x, weight, bias, gradient = gelu_case((2, 4, 5, 6))
    x, gradient = x.bfloat16(), gradient.bfloat16()
    answers = of_gelu(x, weight, bias, gradient)
    assert [answer.dtype for answer in answers] == [torch.bfloat16] * 2 + [torch.float32] * 2
    assert_near(answers, right_gelu(x, weight, bias, gradient), torch.bfloat16)


def test_there_may_be_no_bias():
    x, weight, bias, gradient = gelu_case((1, 3, 4, 5))
    zero = torch.zeros_like(bias)
    assert_near(of_gelu(x, weight, None, gradient)[:3], right_gelu(x, weight, zero, gradient)[:3])
    out = operators.depthwise(x, weight, None, 2)
    assert_near([out], right_depthwise(x, weight, zero, gradient, 2)[:1])
    out = operators.lka_pair(x, weight, None, weight, None, 2)
    assert_near([out], [reference.depthwise(operators.depthwise(x, weight, None, 1), Kernel(weight, None, 2)).double()])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_answer_has_the_memory_format_of_x(layout):
    for found, wanted, case in (
        (of_pair, right_pair, pair_case((2, 3, 4, 3))),
        (of_gelu, right_gelu, gelu_case((2, 3, 5, 4))),
        (of_depthwise, right_depthwise, depthwise_case((2, 3, 5, 4, 3, 3, 2))),
    ):
        x = case[0].contiguous(memory_format=layout)
        answers = found(x, *case[1:])
        assert answers[0].stride() == answers[1].stride() == x.stride()
        assert_near(answers, wanted(*case))


def strided(x: Tensor) -> dict[str, Tensor]:
    """The same map with other strides, in the midst of NaN."""
    field = torch.full((4, x.shape[1] + 2, x.shape[2] + 3, x.shape[3] + 4), torch.nan, device=x.device)
    last = field.contiguous(memory_format=torch.channels_last)
    cut = (slice(1, 3), slice(1, -1), slice(2, -1), slice(3, -1))
    turned = x.transpose(2, 3).contiguous(memory_format=torch.channels_last).transpose(2, 3)
    views = {"cut out": field[cut], "cut out of pixels": last[cut], "turned": torch.empty_like(turned)}
    for view in views.values():
        view.copy_(x)
    return views


@pytest.mark.parametrize("name", ["cut out", "cut out of pixels", "turned"])
def test_strides_may_be_any_and_what_lies_between_is_not_read(name):
    case = depthwise_case((2, 3, 6, 7, 5, 5, 2))
    x, gradient = strided(case[0])[name], strided(case[3])[name]
    assert not x.is_contiguous()
    assert_near(of_depthwise(x, *case[1:3], gradient, 2), right_depthwise(*case))
    case = gelu_case((2, 3, 6, 7))
    x, gradient = strided(case[0])[name], strided(case[3])[name]
    assert_near(of_gelu(x, *case[1:3], gradient), right_gelu(*case))


def test_a_gradient_may_be_one_value_repeated():
    x, weight, bias, _, _ = depthwise_case((2, 3, 5, 4, 3, 3, 1))
    ones = torch.ones((), device=x.device).expand(x.shape)
    assert_near(of_depthwise(x, weight, bias, ones, 1), right_depthwise(x, weight, bias, ones, 1))


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5)])
def test_an_empty_batch_has_zero_gradients(shape):
    x = drawn(*shape)
    local, dilated = drawn_kernel(3, 5, 5), drawn_kernel(3, 7, 7)
    for answers in (
        of_depthwise(x, *dilated, x, 3),
        of_pair(x, local, dilated, x),
        of_gelu(x, *local, x),
    ):
        assert answers[0].shape == answers[1].shape == shape
        assert all(not answer.any() for answer in answers[2:])
        assert answers[2].shape == local[0].shape or answers[2].shape == dilated[0].shape


def test_every_cell_is_written(monkeypatch):
    """Fresh memory is filled with NaN, so that a cell left out would show."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        answers = [*of_depthwise(*depthwise_case((2, 5, 7, 11, 7, 7, 3)))]
        answers += [*of_pair(*pair_case((1, 37, 3, 2))), *of_gelu(*gelu_case((3, 5, 4, 9)))]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(answer.isfinite().all() for answer in answers)


def test_two_runs_give_the_same_bits():
    case = gelu_case((3, 5, 4, 8))
    first, second = of_gelu(*case), of_gelu(*case)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


TILINGS = [
    Tiling(tile_columns=1), Tiling(tile_columns=2, step=2, strips=2), Tiling(tile_columns=5, step=3, strips=3),
    Tiling(tile_columns=3, step=5, lanes=128), Tiling(tile_columns=4, step=1, lanes=32),
]  # fmt: skip


@pytest.mark.parametrize("tiling", TILINGS)
def test_the_tiling_changes_no_bit_of_a_map(tiling, monkeypatch):
    """Of a map: the taps of an output come in one order. Weight gradients are sums over tiles, and only near."""
    for found, wanted, case in (
        (of_depthwise, right_depthwise, depthwise_case((3, 2, 9, 7, 3, 5, 2))),
        (of_gelu, right_gelu, gelu_case((1, 37, 4, 5))),
    ):
        plain = found(*case)
        with monkeypatch.context() as patch:
            patch.setattr(triton_tiling, "tiling_for", lambda problem: tiling)
            answers = found(*case)
        assert torch.equal(answers[0], plain[0])
        assert torch.equal(answers[1], plain[1])
        assert_near(answers, wanted(*case))


def test_the_tuner_tries_several_tilings_and_takes_the_fastest(monkeypatch, tmp_path):
    """Only its clock is replaced, by one that likes the last the best: the interpreter's time would say nothing."""
    new_tuner, tuners = operators._tuned.__wrapped__, []

    def with_another_clock(problem):
        tuner = new_tuner(problem)
        tuner.tried = []

        def clock(call, quantiles):
            call()
            tuner.tried.append(call)
            return [1 / len(tuner.tried)] * 3

        tuner._do_bench = clock
        tuners.append(tuner)
        return tuner

    monkeypatch.setenv("VAN_TUNE", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # where answers are kept, and these are not true
    monkeypatch.setattr(operators, "_interpreting", lambda: False)
    monkeypatch.setattr(operators, "_tuned", with_another_clock)
    case = gelu_case((1, 3, 2, 8))
    assert_near(of_gelu(*case), right_gelu(*case))
    case = depthwise_case((1, 3, 2, 8, 3, 3, 1))
    assert_near(of_depthwise(*case), right_depthwise(*case))
    assert {tuner.base_fn.__name__ for tuner in tuners} == {"convolve", "gelu_gradient", "weight_gradient"}
    for tuner in tuners:
        assert len(tuner.tried) == len(tuner.configs) > 1
        assert tuner.best_config is tuner.configs[-1]


def test_a_tap_moved_by_one_would_be_seen():
    """The control: the same kernel one column further is far outside of the tolerance."""
    case = depthwise_case((2, 3, 9, 8, 3, 3, 2))
    moved = (case[0], case[1].roll(1, dims=3), *case[2:])
    for mine, right in zip(of_depthwise(*moved)[:2], right_depthwise(*case)[:2], strict=True):
        assert (mine.double() - right).abs().max() > 1e4 * TOLERANCES[torch.float32]


def test_gelu_is_the_exact_one_down_to_its_tail():
    """A kernel of the single tap 1 leaves GELU alone; x runs from -12 to 12."""
    x = torch.linspace(-12, 12, 961, device=DEVICE).reshape(1, -1, 1, 1)
    one = torch.ones(961, 1, 1, 1, device=DEVICE)
    found, slope = of_gelu(x, one, None, torch.ones_like(x))[:2]
    v = x.double()
    below = torch.special.erfc(-v / 2**0.5) / 2
    wanted, wanted_slope = v * below, below + v * torch.exp(-(v**2) / 2) / (2 * torch.pi) ** 0.5
    error = (found.double() - wanted).abs()
    assert (error / v.abs().clamp(min=1e-6)).max() < 6e-7  # ten roundings; a GPU's exp2 and rsqrt are good to two
    assert (slope.double() - wanted_slope).abs().max() < 1e-6
    tail = (x > -12) & (x < -1)
    assert (error[tail] / wanted[tail].abs()).max() < 5e-5
    by_tanh = F.gelu(v, approximate="tanh")  # the control: the usual approximation is not this good
    assert (by_tanh - wanted).abs().max() > 1e-4


@pytest.mark.parametrize("strides", [(2**30, 1, 6, 2), (6, 1, 2**30, 2), (6, 1, 2, 2**30)])
def test_offsets_pass_two_to_the_31(strides):
    """Pictures, rows or columns far apart in memory that is never touched between them."""
    shape = (3, 2, 3, 3)
    length = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    try:
        x = torch.empty(length, dtype=torch.bfloat16, device=DEVICE).as_strided(shape, strides)
    except RuntimeError:
        pytest.skip("no room for 4 GB of addresses")
    case = depthwise_case((*shape, 3, 3, 1), torch.bfloat16)
    x.copy_(case[0])
    assert_near(of_depthwise(x, *case[1:]), right_depthwise(*case), torch.bfloat16)


@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(
        st.integers(1, 3), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9),
        st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 3, 5, 7]), st.integers(1, 4),
    )
)  # fmt: skip
def test_any_size_agrees_with_the_definition(shape):
    case = depthwise_case(shape)
    assert_near(of_depthwise(*case), right_depthwise(*case))


def test_why_not_says_what_is_missing(monkeypatch):
    x = torch.ones(1, 1, 1, 1, device=DEVICE)
    assert operators.why_not(x) is None
    assert operators.why_not(DEVICE) is None
    assert "float32, x is torch.float64" in operators.why_not(x.double())
    assert operators.why_not(x.to("meta")) == "x is on meta, not on a GPU"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "triton is not installed" in operators.why_not(x)


def test_the_interpreter_serves_the_cpu_only_if_it_was_on_when_the_kernels_were_imported(monkeypatch):
    with kernels_of(interpreted=False):
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert "TRITON_INTERPRET=1 was not set before" in operators.why_not("cpu")
    with kernels_of(interpreted=True):
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        assert operators.why_not("cpu") is None


def test_a_kernel_too_large_to_write_out_is_refused():
    x, weight = drawn(1, 2, 30, 3), drawn(2, 1, 23, 1)
    with pytest.raises(ShapeError, match=r"weight has 23 x 1 taps that reach the map; .* sides up to 21"):
        operators.depthwise(x, weight, None, 1)
    short = drawn(1, 2, 4, 3)
    assert_near([operators.depthwise(short, weight, None, 1)], [reference.depthwise(short, Kernel(weight)).double()])
