"""The convolutions in C++ against the definition in float64: outputs, gradients, gradients of gradients."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from van.errors import ShapeError
from van.ops import Kernel, cpu, native, reference

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=f"no native library: {native.why_not()}")

FLOAT32 = 3e-5  # sums of some hundred products of order one in float32, in another order; relative to the largest
SHAPES = [  # pictures, channels, rows, columns, side of the kernel, dilation
    (1, 1, 1, 1, 7, 3), (2, 16, 7, 7, 7, 3), (3, 5, 13, 11, 7, 3), (1, 37, 1, 31, 7, 3), (1, 33, 29, 1, 5, 1),
    (2, 64, 9, 24, 7, 3), (1, 17, 23, 2, 9, 2), (2, 3, 8, 50, 3, 4), (1, 16, 3, 3, 21, 1), (17, 2, 5, 6, 5, 2),
]  # fmt: skip
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def case(shape: tuple[int, ...], layout: torch.memory_format = torch.channels_last) -> tuple[Tensor, ...]:
    pictures, channels, rows, columns, side, _ = shape
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(pictures, channels, rows, columns, generator=generator).contiguous(memory_format=layout)
    weight = torch.randn(channels, 1, side, side, generator=generator) / side
    bias, gradient = torch.randn(channels, generator=generator), torch.randn(x.shape, generator=generator)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), gradient


def assert_near(found: Tensor, wanted: Tensor) -> None:
    scale = max(1.0, wanted.detach().abs().max().item()) if wanted.numel() else 1.0
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=FLOAT32 * scale)


def answers(shape: tuple[int, ...], layout: torch.memory_format = torch.channels_last) -> list[Tensor]:
    """Output and gradients by x, weight and bias."""
    x, weight, bias, gradient = case(shape, layout)
    out = native.depthwise(x, weight, bias, shape[-1])
    return [out.detach(), *torch.autograd.grad(out, (x, weight, bias), gradient)]


def wanted(shape: tuple[int, ...]) -> list[Tensor]:
    x, weight, bias, gradient = (tensor.detach().double().requires_grad_() for tensor in case(shape))
    out = reference.depthwise(x, Kernel(weight, bias, shape[-1]))
    return [out, *torch.autograd.grad(out, (x, weight, bias), gradient)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_are_those_of_the_definition(shape: tuple[int, ...], layout: torch.memory_format):
    for found, right in zip(answers(shape, layout), wanted(shape), strict=True):
        assert_near(found, right)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(
        st.integers(1, 3), st.integers(1, 40), st.integers(1, 26), st.integers(1, 26),
        st.sampled_from([1, 3, 5, 7, 9, 11]), st.integers(1, 5),
    )
)  # fmt: skip
def test_any_size_agrees_with_the_definition(shape: tuple[int, ...]):
    for found, right in zip(answers(shape), wanted(shape), strict=True):
        assert_near(found, right)


def test_a_tap_moved_by_one_would_be_seen():
    """The control: the same kernel one column further is far outside the tolerance."""
    x, weight, bias, _ = case(SHAPES[2])
    moved = native.depthwise(x, weight.roll(1, dims=3), bias, 3)
    assert (moved - native.depthwise(x, weight, bias, 3)).abs().max() > 1000 * FLOAT32


def test_every_cell_is_written(monkeypatch: pytest.MonkeyPatch):
    """Fresh memory is filled with NaN, so that a cell left out would show."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        for shape in SHAPES:
            assert all(tensor.isfinite().all() for tensor in answers(shape))
    finally:
        torch.use_deterministic_algorithms(False)


def test_two_runs_and_any_number_of_threads_give_the_same_bits():
    before = torch.get_num_threads()
    try:
        bits = []
        for threads in (1, 2, 1, 3):
            torch.set_num_threads(threads)
            bits.append([tensor.numpy().tobytes() for tensor in answers((17, 40, 15, 14, 7, 3))])
    finally:
        torch.set_num_threads(before)
    assert bits[0] == bits[1] == bits[2] == bits[3]


@pytest.mark.parametrize("shape", [SHAPES[2], SHAPES[5]])
def test_gradients_of_gradients_are_those_of_the_definition(shape: tuple[int, ...]):
    def second(dtype: torch.dtype) -> tuple[Tensor, ...]:
        x, weight, bias, gradient = (tensor.detach().to(dtype).requires_grad_() for tensor in case(shape))
        if dtype == torch.float32:
            out = native.depthwise(x, weight, bias, shape[-1])
        else:
            out = reference.depthwise(x, Kernel(weight, bias, shape[-1]))
        first = torch.autograd.grad(out, (x, weight, bias), gradient, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight, gradient))

    for found, right in zip(second(torch.float32), second(torch.float64), strict=True):
        assert_near(found, right)


def test_a_gradient_penalty_on_the_picture_alone_reaches_the_kernel():
    """Only one of the three gradients is used, so the others come back as nothing."""
    x, weight, _, _ = case(SHAPES[2])
    out = native.depthwise(x, weight, None, 3)
    (of_x,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(of_x.square().sum(), weight)
    double = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    (of_x,) = torch.autograd.grad(
        reference.depthwise(double[0], Kernel(double[1], None, 3)).sum(), double[0], create_graph=True
    )
    (right,) = torch.autograd.grad(of_x.square().sum(), double[1])
    assert_near(found, right)


def test_strided_views_and_no_bias_are_served():
    whole = torch.randn(2, 12, 20, 30)
    view = whole[:, ::2, 3:17, ::3]
    weight = torch.randn(6, 1, 14, 7)[:, :, ::2]
    found = native.depthwise(view, weight, None, 3)
    assert_near(found, reference.depthwise(view.double(), Kernel(weight.double(), None, 3)))


def test_an_empty_batch_gives_zero_gradients():
    x, weight = torch.randn(0, 4, 5, 5, requires_grad=True), torch.randn(4, 1, 7, 7, requires_grad=True)
    out = native.depthwise(x, weight, None, 3)
    (gradient,) = torch.autograd.grad(out.sum(), weight)
    assert out.shape == (0, 4, 5, 5)
    assert gradient.equal(torch.zeros_like(weight))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("side", [7, 4])
def test_the_layout_of_the_input_is_kept_with_odd_and_even_kernels(layout: torch.memory_format, side: int):
    x = torch.randn(2, 6, 17, 15).contiguous(memory_format=layout)
    weight = torch.randn(6, 1, side, side)
    out = cpu.depthwise(x, Kernel(weight, None, 3))
    assert out.stride() == x.stride()
    assert_near(out, reference.depthwise(x.double(), Kernel(weight.double(), None, 3)))


@pytest.mark.filterwarnings("ignore:.*batching rule")
def test_vmap_maps_over_pictures_and_over_kernels():
    x, weight = torch.randn(3, 2, 4, 9, 9), torch.randn(3, 4, 1, 7, 7)
    found = torch.func.vmap(lambda a, w: native.depthwise(a, w, None, 3))(x, weight)
    for one, a, w in zip(found, x, weight, strict=True):
        assert_near(one, reference.depthwise(a.double(), Kernel(w.double(), None, 3)))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.library reads it of its own copies
def test_the_operators_keep_the_rules_of_torch_library():
    x, gradient = (torch.randn(2, 5, 9, 8, requires_grad=True) for _ in range(2))
    weight, bias = torch.randn(5, 1, 7, 7, requires_grad=True), torch.randn(5, requires_grad=True)
    torch.library.opcheck(native.depthwise, (x, weight, bias, 3))
    torch.library.opcheck(native.depthwise_backward, (gradient, x, weight, 3))


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        (torch.randn(1, 2, 5, 5).double(), torch.randn(2, 1, 3, 3), None, "x is torch.float64"),
        (torch.randn(1, 2, 5, 5), torch.randn(3, 1, 3, 3), None, r"weight \(3, 1, 3, 3\); wanted"),
        (torch.randn(1, 2, 5, 5), torch.randn(2, 1, 4, 4), None, "k and m odd"),
        (torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 65), None, "m at most 64"),
        (torch.randn(2, 5, 5), torch.randn(2, 1, 3, 3), None, r"wanted \(N, C, H, W\)"),
        (torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3), torch.randn(3), r"bias is \(3,\); wanted \(2,\)"),
    ],
)
def test_what_the_cpp_code_must_not_be_given_is_refused(x, weight, bias, message):
    with pytest.raises(ShapeError, match=message):
        native.depthwise(x, weight, bias, 1)


BUILD = "from van.ops import native; print(native.why_not())"


def test_two_processes_that_build_at_once_both_get_a_library(tmp_path):
    environment = {**os.environ, "VAN_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", BUILD]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=200)[0] for process in both] == ["None\n", "None\n"]
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".so"]


def test_a_library_is_built_once(tmp_path, run_python):
    run_python(BUILD, VAN_CACHE=str(tmp_path))
    (built,) = tmp_path.iterdir()
    before = built.stat().st_mtime_ns
    assert run_python(BUILD, VAN_CACHE=str(tmp_path)) == "None\n"
    assert built.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "no-such-compiler"}, "there is no C++ compiler"),
        ({"CXX": "false"}, "false failed"),
        ({"VAN_CACHE": "/dev/null/cache"}, "cannot be written"),
    ],
)
def test_without_a_library_the_phases_serve_and_the_reason_is_said_once(environment, reason, tmp_path, run_python):
    code = """
import torch
from van.errors import ShapeError
from van.ops import Kernel, can_run, large_kernel_attention
x = torch.randn(1, 2, 9, 9)
local, dilated = Kernel(torch.randn(2, 1, 5, 5)), Kernel(torch.randn(2, 1, 7, 7), None, 3)
for _ in range(3):
    large_kernel_attention(x, local, dilated, Kernel(torch.randn(2, 2, 1, 1)))
print(can_run("cpu", x, dilated).reason, can_run("phases", x, dilated).ok, sep="|")
"""
    printed = run_python(
        f"import logging, sys; logging.basicConfig(stream=sys.stdout)\n{code}",
        **{"VAN_CACHE": str(tmp_path), **environment},
    )
    *warnings, verdict = printed.splitlines()
    assert len(warnings) == 1
    assert reason in warnings[0]
    assert reason in verdict
    assert verdict.endswith("|True")
