"""The public operators on every backend: the definition's numbers, under autocast, torch.func and exporters, too."""

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ops.cases import (
    FLOAT32,
    LAYOUTS,
    Case,
    Inputs,
    assert_near,
    draw,
    output_and_gradients,
    run_reference,
    run_reference_float64,
)
from van.ops import Kernel, depthwise, depthwise_gelu, large_kernel_attention, lka_pair, native, use_backend

CPP = [] if native.unavailable_reason() else ["cpu"]
AVAILABLE = ["auto", *CPP, "space_to_batch", "reference"]
CASES = [
    Case("depthwise", (2, 5, 13, 11)),
    Case("lka_pair", (2, 5, 13, 11)),
    Case("depthwise_gelu", (2, 5, 13, 11), (3, 3), 1),
]
EVEN = [
    Case("depthwise", (2, 5, 13, 11), (4, 6), 3),
    Case("depthwise", (2, 5, 13, 11), (2, 3), 1),
    Case("lka_pair", (2, 5, 13, 11), (4, 4), 3, (2, 5)),
    Case("depthwise_gelu", (2, 5, 13, 11), (2, 4), 1),
]


def run_public_function(case: Case, inputs: Inputs) -> Tensor:
    """Return the output of the public function."""
    x, *kernels = inputs.values()
    if case.operator == "depthwise":
        return depthwise(x, Kernel(*kernels, case.dilation))
    if case.operator == "depthwise_gelu":
        return depthwise_gelu(x, Kernel(*kernels))
    return lka_pair(x, Kernel(*kernels[:2]), Kernel(*kernels[2:], case.dilation))


def test_every_backend_matches_the_reference(subtests):
    for backend in AVAILABLE:
        for case in CASES:
            for with_bias in [True, False]:
                for layout in LAYOUTS:
                    with subtests.test(
                        backend=str(backend), case=str(case), with_bias=str(with_bias), layout=str(layout)
                    ):
                        inputs = draw(case, with_bias=with_bias, layout=layout)
                        with use_backend(backend):
                            found = output_and_gradients(run_public_function, case, inputs)
                        assert_near(found, run_reference_float64(case, inputs))
                        assert found["output"].stride() == inputs["x"].stride()


def test_even_kernel_sizes_match_the_reference(subtests):
    for case in EVEN:
        with subtests.test(case=str(case)):
            inputs = draw(case)
            assert_near(output_and_gradients(run_public_function, case, inputs), run_reference_float64(case, inputs))


def test_float64_is_computed_in_float64(subtests):
    for case in [*CASES, *EVEN]:
        with subtests.test(case=str(case)):
            inputs = {name: tensor.double() for name, tensor in draw(case).items()}
            assert_near(
                output_and_gradients(run_public_function, case, inputs), run_reference_float64(case, inputs), 1e-14
            )


def test_empty_batch_gives_zero_gradients(subtests):
    for case in [Case("lka_pair", (2, 5, 13, 11), local_sides=(3, 3)), *CASES]:
        with subtests.test(case=str(case)):
            inputs = draw(case._replace(shape=(0, 5, 13, 11)))
            found = output_and_gradients(run_public_function, case, inputs)
            assert found.pop("output").shape == found.pop("x").shape == (0, 5, 13, 11)
            for name, gradient in found.items():
                assert gradient.equal(torch.zeros_like(inputs[name]))


def test_autocast_gives_half_outputs_and_float32_gradients(subtests):
    """As with PyTorch's convolutions. Outputs match float64 for the input as rounded by autocast."""
    for backend in AVAILABLE:
        for case in CASES:
            for dtype in [torch.bfloat16, torch.float16]:
                with subtests.test(backend=str(backend), case=str(case), dtype=str(dtype)):
                    inputs = draw(case)

                    def under_autocast(case: Case, inputs: Inputs) -> Tensor:
                        with torch.autocast("cpu", dtype=dtype):
                            out = run_public_function(case, inputs)
                        assert out.dtype == dtype
                        return out

                    with use_backend(backend):
                        found = output_and_gradients(under_autocast, case, inputs)
                    assert {tensor.dtype for name, tensor in found.items() if name != "output"} == {torch.float32}
                    expected = output_and_gradients(
                        run_reference,
                        case,
                        {name: tensor.double() for name, tensor in inputs.items()},
                        gradient_dtype=dtype,
                    )
                    assert_near(found, expected, 5 * torch.finfo(dtype).eps)


@pytest.mark.skipif(not CPP, reason="no native library")
def test_autocast_casts_inputs_but_not_weights_of_the_fast_operators(subtests):
    for case in CASES:
        with subtests.test(case=str(case)):
            inputs = draw(case)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = run_public_function(case, inputs)
            assert found.equal(run_public_function(case, {**inputs, "x": inputs["x"].bfloat16()}))
            assert not found.equal(
                run_public_function(case, {name: value.bfloat16() for name, value in inputs.items()})
            )


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # PyTorch's own, when forward mode is first used
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", ["auto", "space_to_batch", "reference"])
class TestTorchFunc:
    """Function transforms give the gradients of the reference on every backend."""

    def loss(self, case: Case, inputs: Inputs, image: Tensor) -> Tensor:
        return run_public_function(case, {**inputs, "x": image[None]}).square().sum()

    def test_per_sample_gradients(self, backend, case):
        inputs = draw(case)
        loss = functools.partial(self.loss, case, inputs)
        leaf = inputs["x"].double().requires_grad_()
        doubles = {name: tensor.double() for name, tensor in inputs.items()}
        total = run_reference(case, {**doubles, "x": leaf}).square().sum()
        expected = {"x": torch.autograd.grad(total, leaf)[0]}
        with use_backend(backend):
            assert_near({"x": torch.func.vmap(torch.func.grad(loss))(inputs["x"])}, expected)
            one_by_one = torch.stack([torch.func.grad(loss)(image) for image in inputs["x"]])
        assert_near({"x": one_by_one}, expected)

    def test_forward_mode_derivatives(self, backend, case):
        """Forward mode, as a transform and with dual tensors; a missing tangent would be zero."""
        inputs = draw(case)
        doubles = {name: tensor.double() for name, tensor in inputs.items()}
        direction = torch.randn(case.shape, generator=torch.Generator().manual_seed(5))
        _, expected = torch.func.jvp(
            lambda x: run_reference(case, {**doubles, "x": x}), (doubles["x"],), (direction.double(),)
        )
        assert expected.abs().max() > 0.1
        with use_backend(backend):
            _, found = torch.func.jvp(
                lambda x: run_public_function(case, {**inputs, "x": x}), (inputs["x"],), (direction,)
            )
            with forward_ad.dual_level():
                dual = {**inputs, "x": forward_ad.make_dual(inputs["x"], direction)}
                tangent = forward_ad.unpack_dual(run_public_function(case, dual)).tangent
        assert_near({"tangent": found}, {"tangent": expected})
        assert tangent is not None
        assert_near({"tangent": tangent}, {"tangent": expected})


class Attention(nn.Module):
    """Large kernel attention and the feed-forward operator, as a network calls them."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        shapes = {"local": (4, 1, 5, 5), "dilated": (4, 1, 7, 7), "mix": (4, 4, 1, 1), "forward_": (4, 1, 3, 3)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator) / 7))

    def forward(self, x: Tensor) -> Tensor:
        kernels = Kernel(self.local), Kernel(self.dilated, None, 3), Kernel(self.mix)
        return depthwise_gelu(large_kernel_attention(x, *kernels), Kernel(self.forward_))


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:Converting a tensor to a Python:torch.jit.TracerWarning")
def test_traced_graph_contains_plain_convolutions():
    model, x = Attention(), torch.randn(1, 4, 9, 9)
    traced = torch.jit.trace(model, x)
    nodes = [node.kind() for node in traced.inlined_graph.nodes()]
    assert sum("convolution" in kind for kind in nodes) == 4
    assert not any("van::" in kind or "permute" in kind or "reshape" in kind for kind in nodes)
    torch.testing.assert_close(traced(x), model(x), rtol=FLOAT32, atol=FLOAT32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_graph_contains_plain_convolutions():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(Attention().eval(), (torch.randn(1, 4, 9, 9),), dynamo=True, verbose=False)
    kinds = [node.op_type for node in program.model.graph]
    assert kinds.count("Conv") == 4
    assert {node.domain for node in program.model.graph} == {""}


@pytest.mark.parametrize("create_graph", [False, True])
def test_eager_calls_support_double_backward(create_graph):
    """The public functions bypass PyTorch's dispatcher; their gradients must remain differentiable."""
    torch.manual_seed(0)
    tensors = [torch.randn(2, 5, 9, 8), torch.randn(5, 1, 3, 3) / 3, torch.randn(5)]

    def second_gradients(dtype, backend):
        x, weight, bias = (tensor.to(dtype).requires_grad_() for tensor in tensors)
        with use_backend(backend):
            out = depthwise_gelu(x, Kernel(weight, bias)).square().sum()
            (first,) = torch.autograd.grad(out, x, create_graph=True)
            return torch.autograd.grad(first.square().sum(), (x, weight, bias), create_graph=create_graph)

    for found, right in zip(
        second_gradients(torch.float32, "auto"), second_gradients(torch.float64, "reference"), strict=True
    ):
        assert (found.double() - right).abs().max() < 1e-4 * right.abs().max()
