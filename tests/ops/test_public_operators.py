"""The public operators on every backend: the definition's numbers, under autocast, torch.func and exporters, too."""

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ops.cases import FLOAT32, LAYOUTS, Case, Inputs, answers, assert_near, by_definition, draw, truth
from van.ops import Kernel, depthwise, depthwise_gelu, large_kernel_attention, lka_pair, native, use_backend

CPP = [] if native.why_not() else ["cpu"]
HERE = ["auto", *CPP, "phases", "reference"]
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


def by_public_function(case: Case, inputs: Inputs) -> Tensor:
    """The answer of ``van.ops``."""
    x, *kernels = inputs.values()
    if case.operator == "depthwise":
        return depthwise(x, Kernel(*kernels, case.dilation))
    if case.operator == "depthwise_gelu":
        return depthwise_gelu(x, Kernel(*kernels))
    return lka_pair(x, Kernel(*kernels[:2]), Kernel(*kernels[2:], case.dilation))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", HERE)
def test_every_backend_gives_the_answers_of_the_definition(backend, case, with_bias, layout):
    inputs = draw(case, with_bias=with_bias, layout=layout)
    with use_backend(backend):
        found = answers(by_public_function, case, inputs)
    assert_near(found, truth(case, inputs))
    assert found["output"].stride() == inputs["x"].stride()


@pytest.mark.parametrize("case", EVEN, ids=str)
def test_kernels_with_even_sides_are_served(case):
    inputs = draw(case)
    assert_near(answers(by_public_function, case, inputs), truth(case, inputs))


@pytest.mark.parametrize("case", [*CASES, *EVEN], ids=str)
def test_float64_is_served_to_its_own_precision(case):
    inputs = {name: tensor.double() for name, tensor in draw(case).items()}
    assert_near(answers(by_public_function, case, inputs), truth(case, inputs), 1e-14)


@pytest.mark.parametrize("case", [Case("lka_pair", (2, 5, 13, 11), local_sides=(3, 3)), *CASES], ids=str)
def test_an_empty_batch_gives_zero_gradients(case):
    inputs = draw(case._replace(shape=(0, 5, 13, 11)))
    found = answers(by_public_function, case, inputs)
    assert found.pop("output").shape == found.pop("x").shape == (0, 5, 13, 11)
    for name, gradient in found.items():
        assert gradient.equal(torch.zeros_like(inputs[name]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", HERE)
def test_autocast_gives_its_dtype_and_float32_gradients(backend, case, dtype):
    """As for PyTorch's convolutions. The answers are near those of float64 for the map as autocast rounds it."""
    inputs = draw(case)

    def under_autocast(case: Case, inputs: Inputs) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            out = by_public_function(case, inputs)
        assert out.dtype == dtype
        return out

    with use_backend(backend):
        found = answers(under_autocast, case, inputs)
    assert {tensor.dtype for name, tensor in found.items() if name != "output"} == {torch.float32}
    wanted = answers(by_definition, case, {name: tensor.double() for name, tensor in inputs.items()}, given_in=dtype)
    assert_near(found, wanted, 5 * torch.finfo(dtype).eps)


@pytest.mark.skipif(not CPP, reason="no native library")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_autocast_rounds_the_map_but_not_the_weights_of_the_fast_operators(case):
    inputs = draw(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = by_public_function(case, inputs)
    assert found.equal(by_public_function(case, {**inputs, "x": inputs["x"].bfloat16()}))
    assert not found.equal(by_public_function(case, {name: value.bfloat16() for name, value in inputs.items()}))


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # PyTorch's own, when forward mode is first used
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", ["auto", "phases", "reference"])
class TestTorchFunc:
    """Transforms of functions see the definition's gradients, whatever serves."""

    def loss(self, case: Case, inputs: Inputs, picture: Tensor) -> Tensor:
        return by_public_function(case, {**inputs, "x": picture[None]}).square().sum()

    def test_gradients_one_picture_at_a_time(self, backend, case):
        inputs = draw(case)
        loss = functools.partial(self.loss, case, inputs)
        leaf = inputs["x"].double().requires_grad_()
        doubles = {name: tensor.double() for name, tensor in inputs.items()}
        total = by_definition(case, {**doubles, "x": leaf}).square().sum()
        wanted = {"x": torch.autograd.grad(total, leaf)[0]}
        with use_backend(backend):
            assert_near({"x": torch.func.vmap(torch.func.grad(loss))(inputs["x"])}, wanted)
            one_by_one = torch.stack([torch.func.grad(loss)(picture) for picture in inputs["x"]])
        assert_near({"x": one_by_one}, wanted)

    def test_directional_derivatives(self, backend, case):
        """Forward mode, as a transform and as a tensor with a tangent; a tangent lost on the way would be zero."""
        inputs = draw(case)
        doubles = {name: tensor.double() for name, tensor in inputs.items()}
        direction = torch.randn(case.shape, generator=torch.Generator().manual_seed(5))
        _, wanted = torch.func.jvp(
            lambda x: by_definition(case, {**doubles, "x": x}), (doubles["x"],), (direction.double(),)
        )
        assert wanted.abs().max() > 0.1
        with use_backend(backend):
            _, found = torch.func.jvp(
                lambda x: by_public_function(case, {**inputs, "x": x}), (inputs["x"],), (direction,)
            )
            with forward_ad.dual_level():
                dual = {**inputs, "x": forward_ad.make_dual(inputs["x"], direction)}
                tangent = forward_ad.unpack_dual(by_public_function(case, dual)).tangent
        assert_near({"tangent": found}, {"tangent": wanted})
        assert tangent is not None
        assert_near({"tangent": tangent}, {"tangent": wanted})


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
def test_a_tracer_gets_plain_convolutions():
    model, x = Attention(), torch.randn(1, 4, 9, 9)
    traced = torch.jit.trace(model, x)
    nodes = [node.kind() for node in traced.inlined_graph.nodes()]
    assert sum("convolution" in kind for kind in nodes) == 4
    assert not any("van::" in kind or "permute" in kind or "reshape" in kind for kind in nodes)
    torch.testing.assert_close(traced(x), model(x), rtol=FLOAT32, atol=FLOAT32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_onnx_file_gets_plain_convolutions():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(Attention().eval(), (torch.randn(1, 4, 9, 9),), dynamo=True, verbose=False)
    kinds = [node.op_type for node in program.model.graph]
    assert kinds.count("Conv") == 4
    assert {node.domain for node in program.model.graph} == {""}


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_of_gradients_come_through_the_short_cut_of_eager_mode(create_graph):
    """The public functions pass PyTorch's dispatcher by; what they leave behind must still be differentiable."""
    torch.manual_seed(0)
    tensors = [torch.randn(2, 5, 9, 8), torch.randn(5, 1, 3, 3) / 3, torch.randn(5)]

    def second(dtype, backend):
        x, weight, bias = (tensor.to(dtype).requires_grad_() for tensor in tensors)
        with use_backend(backend):
            out = depthwise_gelu(x, Kernel(weight, bias)).square().sum()
            (first,) = torch.autograd.grad(out, x, create_graph=True)
            return torch.autograd.grad(first.square().sum(), (x, weight, bias), create_graph=create_graph)

    for found, right in zip(second(torch.float32, "auto"), second(torch.float64, "reference"), strict=True):
        assert (found.double() - right).abs().max() < 1e-4 * right.abs().max()
