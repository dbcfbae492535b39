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
    torch.bfloat16: 3 * 2**-8,  # 8-bit rounding of the output and of intermediates
    torch.float16: 3 * 2**-11,  # the same with 11 bits
}
DEPTHWISE = [  # images, channels, rows, columns, kernel rows, kernel columns, dilation
    (1, 1, 1, 1, 7, 7, 3), (2, 16, 7, 7, 7, 7, 3), (3, 5, 11, 8, 7, 7, 3), (1, 37, 1, 31, 7, 7, 3),
    (1, 33, 29, 1, 5, 5, 1), (17, 2, 5, 6, 5, 5, 2), (2, 3, 4, 19, 3, 3, 4), (1, 16, 3, 3, 21, 21, 1),
    (1, 70, 5, 17, 3, 3, 1), (2, 3, 9, 8, 3, 7, 2), (1, 2, 11, 6, 5, 1, 1),
]  # fmt: skip
PAIRS = [(1, 3, 1, 1), (2, 16, 7, 7), (1, 2, 9, 11), (1, 5, 3, 23)]  # 5x5, then 7x7 dilated by 3
FEED_FORWARD = [(1, 1, 1, 1), (2, 5, 7, 7), (1, 70, 5, 3), (3, 2, 8, 9), (2, 16, 2, 19)]  # 3x3
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@contextlib.contextmanager
def imported_kernels(interpreted: bool) -> Iterator[None]:
    """Import the kernels again, for the interpreter or for a GPU, and remove them afterwards."""
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
    with imported_kernels(interpreted=request.param == "cpu"), pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "DEVICE", request.param)
        yield request.param


DEVICE = "cpu"


def random_tensor(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def random_kernel(channels: int, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return random_tensor(channels, 1, rows, columns, dtype=dtype) / (rows * columns) ** 0.5, random_tensor(
        channels, dtype=dtype
    )


def double(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def assert_near(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype = torch.float32) -> None:
    for mine, right in zip(found, expected, strict=True):
        scale = max(1.0, right.detach().abs().max().item()) if right.numel() else 1.0
        torch.testing.assert_close(mine.double(), right, rtol=0, atol=TOLERANCES[dtype] * scale)


def add_gradients(out: Tensor, inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    return [out, *torch.autograd.grad(out, inputs, gradient.double(), materialize_grads=True)]


def run_depthwise(x: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor, dilation: int) -> list[Tensor]:
    """Output and gradients by x, weight and bias."""
    out = operators.depthwise(x, weight, bias, dilation)
    return [out, *operators.depthwise_backward(gradient, x, weight, dilation)]


def expected_depthwise(x: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor, dilation: int) -> list[Tensor]:
    inputs = double(x, weight, bias)
    return add_gradients(reference.depthwise(inputs[0], Kernel(*inputs[1:], dilation)), inputs, gradient)


def run_pair(x: Tensor, local: tuple, dilated: tuple, gradient: Tensor) -> list[Tensor]:
    out = operators.lka_pair(x, *local, *dilated, 3)
    return [out, *operators.lka_pair_backward(gradient, x, *local, dilated[0], 3)]


def expected_pair(x: Tensor, local: tuple, dilated: tuple, gradient: Tensor) -> list[Tensor]:
    inputs = double(x, *local, *dilated)
    local_out = reference.depthwise(inputs[0], Kernel(*inputs[1:3]))
    return add_gradients(reference.depthwise(local_out, Kernel(*inputs[3:], 3)), inputs, gradient)


def run_gelu(x: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor) -> list[Tensor]:
    return [
        operators.depthwise_gelu(x, weight, bias),
        *operators.depthwise_gelu_backward(gradient, x, weight, bias),
    ]


def expected_gelu(x: Tensor, weight: Tensor, bias: Tensor, gradient: Tensor) -> list[Tensor]:
    inputs = double(x, weight, bias)
    return add_gradients(F.gelu(reference.depthwise(inputs[0], Kernel(*inputs[1:]))), inputs, gradient)


def depthwise_case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple:
    """x, weight, bias, gradient and dilation."""
    return (random_tensor(*shape[:4], dtype=dtype), *random_kernel(shape[1], *shape[4:6], dtype),
            random_tensor(*shape[:4], dtype=dtype, seed=1), shape[6])  # fmt: skip


def pair_case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple:
    kernels = random_kernel(shape[1], 5, 5, dtype), random_kernel(shape[1], 7, 7, dtype)
    return random_tensor(*shape, dtype=dtype), *kernels, random_tensor(*shape, dtype=dtype, seed=1)


def gelu_case(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, side: int = 3) -> tuple:
    return (
        random_tensor(*shape, dtype=dtype),
        *random_kernel(shape[1], side, side, dtype),
        random_tensor(*shape, dtype=dtype, seed=1),
    )


@pytest.mark.parametrize("shape", DEPTHWISE)
def test_depthwise_and_its_gradients_match_the_reference(shape):
    case = depthwise_case(shape)
    assert_near(run_depthwise(*case), expected_depthwise(*case))


@pytest.mark.parametrize("shape", PAIRS)
def test_pair_and_its_gradients_match_the_reference(shape):
    case = pair_case(shape)
    assert_near(run_pair(*case), expected_pair(*case))


@pytest.mark.parametrize("shape", FEED_FORWARD)
def test_depthwise_gelu_and_its_gradients_match_the_reference(shape):
    case = gelu_case(shape)
    assert_near(run_gelu(*case), expected_gelu(*case))


def test_depthwise_gelu_supports_other_kernel_sizes():
    for side in (1, 5):
        case = gelu_case((1, 3, 6, 9), side=side)
        assert_near(run_gelu(*case), expected_gelu(*case))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_accumulated_in_float32(dtype):
    for found, expected, case in (
        (run_depthwise, expected_depthwise, depthwise_case((2, 4, 5, 8, 7, 7, 3), dtype)),
        (run_pair, expected_pair, pair_case((2, 4, 4, 5), dtype)),
        (run_gelu, expected_gelu, gelu_case((2, 4, 4, 5), dtype)),
    ):
        outputs = found(*case)
        assert {output.dtype for output in outputs} == {dtype}
        assert_near(outputs, expected(*case), dtype)


def test_weights_may_have_higher_precision_than_the_input():
    x, weight, bias, gradient = gelu_case((2, 4, 5, 6))
    x, gradient = x.bfloat16(), gradient.bfloat16()
    outputs = run_gelu(x, weight, bias, gradient)
    assert [output.dtype for output in outputs] == [torch.bfloat16] * 2 + [torch.float32] * 2
    assert_near(outputs, expected_gelu(x, weight, bias, gradient), torch.bfloat16)


def test_bias_is_optional():
    x, weight, bias, gradient = gelu_case((1, 3, 4, 5))
    zero = torch.zeros_like(bias)
    assert_near(run_gelu(x, weight, None, gradient)[:3], expected_gelu(x, weight, zero, gradient)[:3])
    out = operators.depthwise(x, weight, None, 2)
    assert_near([out], expected_depthwise(x, weight, zero, gradient, 2)[:1])
    out = operators.lka_pair(x, weight, None, weight, None, 2)
    assert_near([out], [reference.depthwise(operators.depthwise(x, weight, None, 1), Kernel(weight, None, 2)).double()])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_has_the_memory_format_of_x(layout):
    for found, expected, case in (
        (run_pair, expected_pair, pair_case((2, 3, 4, 3))),
        (run_gelu, expected_gelu, gelu_case((2, 3, 5, 4))),
        (run_depthwise, expected_depthwise, depthwise_case((2, 3, 5, 4, 3, 3, 2))),
    ):
        x = case[0].contiguous(memory_format=layout)
        outputs = found(x, *case[1:])
        assert outputs[0].stride() == outputs[1].stride() == x.stride()
        assert_near(outputs, expected(*case))


def strided_views(x: Tensor) -> dict[str, Tensor]:
    """Return views of the same values with other strides, surrounded by NaN."""
    field = torch.full((4, x.shape[1] + 2, x.shape[2] + 3, x.shape[3] + 4), torch.nan, device=x.device)
    last = field.contiguous(memory_format=torch.channels_last)
    cut = (slice(1, 3), slice(1, -1), slice(2, -1), slice(3, -1))
    turned = x.transpose(2, 3).contiguous(memory_format=torch.channels_last).transpose(2, 3)
    views = {"cut out": field[cut], "cut out of pixels": last[cut], "turned": torch.empty_like(turned)}
    for view in views.values():
        view.copy_(x)
    return views


@pytest.mark.parametrize("name", ["cut out", "cut out of pixels", "turned"])
def test_arbitrary_strides_match_the_reference_and_padding_memory_is_not_read(name):
    case = depthwise_case((2, 3, 6, 7, 5, 5, 2))
    x, gradient = strided_views(case[0])[name], strided_views(case[3])[name]
    assert not x.is_contiguous()
    assert_near(run_depthwise(x, *case[1:3], gradient, 2), expected_depthwise(*case))
    case = gelu_case((2, 3, 6, 7))
    x, gradient = strided_views(case[0])[name], strided_views(case[3])[name]
    assert_near(run_gelu(x, *case[1:3], gradient), expected_gelu(*case))


def test_expanded_gradients_match_the_reference():
    x, weight, bias, _, _ = depthwise_case((2, 3, 5, 4, 3, 3, 1))
    ones = torch.ones((), device=x.device).expand(x.shape)
    assert_near(run_depthwise(x, weight, bias, ones, 1), expected_depthwise(x, weight, bias, ones, 1))


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5)])
def test_empty_batch_gives_zero_gradients(shape):
    x = random_tensor(*shape)
    local, dilated = random_kernel(3, 5, 5), random_kernel(3, 7, 7)
    for outputs in (
        run_depthwise(x, *dilated, x, 3),
        run_pair(x, local, dilated, x),
        run_gelu(x, *local, x),
    ):
        assert outputs[0].shape == outputs[1].shape == shape
        assert all(not output.any() for output in outputs[2:])
        assert outputs[2].shape == local[0].shape or outputs[2].shape == dilated[0].shape


def test_every_element_is_written(monkeypatch):
    """New memory is filled with NaN, so that an element that is not written is detected."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        outputs = [*run_depthwise(*depthwise_case((2, 5, 7, 11, 7, 7, 3)))]
        outputs += [*run_pair(*pair_case((1, 37, 3, 2))), *run_gelu(*gelu_case((3, 5, 4, 9)))]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(output.isfinite().all() for output in outputs)


def test_two_runs_are_bitwise_identical():
    case = gelu_case((3, 5, 4, 8))
    first, second_gradients = run_gelu(*case), run_gelu(*case)
    assert all(torch.equal(one, two) for one, two in zip(first, second_gradients, strict=True))


TILINGS = [
    Tiling(tile_columns=1), Tiling(tile_columns=2, step=2, strips=2), Tiling(tile_columns=5, step=3, strips=3),
    Tiling(tile_columns=3, step=5, lanes=128), Tiling(tile_columns=4, step=1, lanes=32),
]  # fmt: skip


@pytest.mark.parametrize("tiling", TILINGS)
def test_outputs_are_bitwise_identical_for_any_tiling(tiling, monkeypatch):
    """Outputs sum their taps in a fixed order. Weight gradients are sums over tiles, which only match approximately."""
    for found, expected, case in (
        (run_depthwise, expected_depthwise, depthwise_case((3, 2, 9, 7, 3, 5, 2))),
        (run_gelu, expected_gelu, gelu_case((1, 37, 4, 5))),
    ):
        plain = found(*case)
        with monkeypatch.context() as patch:
            patch.setattr(triton_tiling, "select_tiling", lambda problem: tiling)
            outputs = found(*case)
        assert torch.equal(outputs[0], plain[0])
        assert torch.equal(outputs[1], plain[1])
        assert_near(outputs, expected(*case))


def test_autotuner_times_candidates_and_selects_the_fastest(monkeypatch, tmp_path):
    """Its clock is replaced by one that prefers the last candidate, because interpreter times are meaningless."""
    new_tuner, tuners = operators._autotuned_kernel.__wrapped__, []

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
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # the replaced clock must not affect the real cache
    monkeypatch.setattr(operators, "_uses_interpreter", lambda: False)
    monkeypatch.setattr(operators, "_autotuned_kernel", with_another_clock)
    case = gelu_case((1, 3, 2, 8))
    assert_near(run_gelu(*case), expected_gelu(*case))
    case = depthwise_case((1, 3, 2, 8, 3, 3, 1))
    assert_near(run_depthwise(*case), expected_depthwise(*case))
    assert {tuner.base_fn.__name__ for tuner in tuners} == {"convolve", "gelu_gradient", "weight_gradient"}
    for tuner in tuners:
        assert len(tuner.tried) == len(tuner.configs) > 1
        assert tuner.best_config is tuner.configs[-1]


def test_comparison_detects_shifted_weights():
    """The control: a kernel shifted by one column exceeds the tolerance by far."""
    case = depthwise_case((2, 3, 9, 8, 3, 3, 2))
    moved = (case[0], case[1].roll(1, dims=3), *case[2:])
    for mine, right in zip(run_depthwise(*moved)[:2], expected_depthwise(*case)[:2], strict=True):
        assert (mine.double() - right).abs().max() > 1e4 * TOLERANCES[torch.float32]


def test_gelu_is_exact_including_its_tail():
    """A kernel of the single tap 1 leaves GELU alone; x runs from -12 to 12."""
    x = torch.linspace(-12, 12, 961, device=DEVICE).reshape(1, -1, 1, 1)
    one = torch.ones(961, 1, 1, 1, device=DEVICE)
    found, slope = run_gelu(x, one, None, torch.ones_like(x))[:2]
    v = x.double()
    below = torch.special.erfc(-v / 2**0.5) / 2
    expected, expected_slope = v * below, below + v * torch.exp(-(v**2) / 2) / (2 * torch.pi) ** 0.5
    error = (found.double() - expected).abs()
    assert (error / v.abs().clamp(min=1e-6)).max() < 6e-7  # ten roundings; a GPU's exp2 and rsqrt are good to two
    assert (slope.double() - expected_slope).abs().max() < 1e-6
    tail = (x > -12) & (x < -1)
    assert (error[tail] / expected[tail].abs()).max() < 5e-5
    by_tanh = F.gelu(v, approximate="tanh")  # the control: the usual approximation is not this good
    assert (by_tanh - expected).abs().max() > 1e-4


@pytest.mark.parametrize("strides", [(2**30, 1, 6, 2), (6, 1, 2**30, 2), (6, 1, 2, 2**30)])
def test_offsets_may_exceed_two_to_the_31(strides):
    """Images, rows or columns far apart in memory that is never touched between them."""
    shape = (3, 2, 3, 3)
    length = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    try:
        x = torch.empty(length, dtype=torch.bfloat16, device=DEVICE).as_strided(shape, strides)
    except RuntimeError:
        pytest.skip("no room for 4 GB of addresses")
    case = depthwise_case((*shape, 3, 3, 1), torch.bfloat16)
    x.copy_(case[0])
    assert_near(run_depthwise(x, *case[1:]), expected_depthwise(*case), torch.bfloat16)


@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(
        st.integers(1, 3), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9),
        st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 3, 5, 7]), st.integers(1, 4),
    )
)  # fmt: skip
def test_random_sizes_match_the_reference(shape):
    case = depthwise_case(shape)
    assert_near(run_depthwise(*case), expected_depthwise(*case))


def test_unavailable_reason_names_the_missing_requirement(monkeypatch):
    x = torch.ones(1, 1, 1, 1, device=DEVICE)
    assert operators.unavailable_reason(x) is None
    assert operators.unavailable_reason(DEVICE) is None
    assert "torch.float64" in operators.unavailable_reason(x.double())
    assert "meta" in operators.unavailable_reason(x.to("meta"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "triton is not installed" in operators.unavailable_reason(x)


def test_interpreter_must_be_enabled_before_the_kernels_are_imported(monkeypatch):
    with imported_kernels(interpreted=False):
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert "TRITON_INTERPRET=1" in operators.unavailable_reason("cpu")
    with imported_kernels(interpreted=True):
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        assert operators.unavailable_reason("cpu") is None


def test_too_large_kernels_raise_shape_error():
    x, weight = random_tensor(1, 2, 30, 3), random_tensor(2, 1, 23, 1)
    with pytest.raises(ShapeError, match=r"weight: .* 21 .*23 x 1.*VAN_OPS"):
        operators.depthwise(x, weight, None, 1)
    short = random_tensor(1, 2, 4, 3)
    assert_near([operators.depthwise(short, weight, None, 1)], [reference.depthwise(short, Kernel(weight)).double()])
