"""Registration of the operators with PyTorch: fake kernels, gradients, double backward, vmap, compile and export."""

import io

import pytest
import torch
from torch import Tensor, nn

from ops.cases import (
    LAYOUTS,
    OPERATORS,
    Case,
    Inputs,
    assert_near,
    draw,
    output_and_gradients,
    run_operator,
    run_reference,
    run_reference_float64,
)
from van.errors import ShapeError
from van.ops import native, operators

pytestmark = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=f"no native library: {native.unavailable_reason()}"
)

CASES = {
    "depthwise": Case("depthwise", (2, 5, 9, 8)),
    "lka_pair": Case("lka_pair", (2, 5, 9, 8)),
    "depthwise_gelu": Case("depthwise_gelu", (2, 5, 9, 8), (3, 3), 1),
}
UNDILATED = Case("depthwise", (2, 5, 9, 8), (5, 3), 1)  # float32: PyTorch's convolution forward, C++ backward
UNFUSED_GELU = Case("depthwise_gelu", (2, 5, 9, 8), (5, 3), 1)  # not 3 x 3: in two steps
EVERY_CASE = [*CASES.values(), UNDILATED, UNFUSED_GELU]


def require_grad(inputs: Inputs) -> list[Tensor]:
    return [tensor.requires_grad_() for tensor in inputs.values() if tensor is not None]


def opcheck_both(case: Case, inputs: Inputs) -> None:
    """Run ``torch.library.opcheck`` on the operator and its backward."""
    dilation = () if case.operator == "depthwise_gelu" else (case.dilation,)
    gradient = torch.randn(case.shape).to(inputs["x"].dtype).requires_grad_()
    require_grad(inputs)
    torch.library.opcheck(getattr(operators, case.operator), (*inputs.values(), *dilation))
    backward = getattr(operators, f"{case.operator}_backward")
    torch.library.opcheck(backward, (gradient, *inputs.values(), *dilation))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.library reads it of its own copies
class TestOpcheck:
    def test_passes_with_and_without_biases(self, subtests):
        for case in EVERY_CASE:
            for with_bias in [True, False]:
                with subtests.test(case=str(case), with_bias=str(with_bias)):
                    opcheck_both(case, draw(case, with_bias=with_bias))

    def test_passes_for_half_precision(self, subtests):
        for case in CASES.values():
            for weight_dtype in [torch.float32, torch.bfloat16]:
                with subtests.test(case=str(case), weight_dtype=str(weight_dtype)):
                    opcheck_both(case, draw(case, dtype=torch.bfloat16, weight_dtype=weight_dtype, layout=LAYOUTS[0]))

    def test_passes_for_strided_inputs_and_weights(self, subtests):
        for case in EVERY_CASE:
            with subtests.test(case=str(case)):
                inputs = draw(case)
                strided_views = torch.randn(2, 10, 9, 16)[:, ::2, :, ::2]
                opcheck_both(case, {**inputs, "x": strided_views})
                for restride in (lambda w: w.mT.contiguous().mT, lambda w: w.to(memory_format=torch.channels_last)):
                    other = {name: restride(value) if "weight" in name else value for name, value in inputs.items()}
                    opcheck_both(case, other)

    def test_passes_for_mixed_dtypes(self):
        case = CASES["lka_pair"]
        dtypes = {"local_bias": torch.float16, "dilated_weight": torch.bfloat16}
        inputs = {name: value.to(dtypes.get(name, value.dtype)) for name, value in draw(case).items()}
        opcheck_both(case, inputs)

    def test_passes_for_an_empty_batch(self, subtests):
        for case in EVERY_CASE:
            with subtests.test(case=str(case)):
                case = case._replace(shape=(0, *case.shape[1:]))
                opcheck_both(case, draw(case))


def second_gradients(function, case: Case, inputs: Inputs, *, by: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the gradients of the squared gradients named in ``by``, for every input and the upstream gradient."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items() if tensor is not None}
    out = function(case, {name: leaves.get(name) for name in inputs})
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype).requires_grad_()
    first = torch.autograd.grad(out, [leaves[name] for name in by], gradient, create_graph=True)
    penalty = sum(gradient.square().sum() for gradient in first)
    leaves["gradient"] = gradient
    seconds = torch.autograd.grad(penalty, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, seconds, strict=True))


def test_double_backward_matches_the_reference(subtests):
    """For all first gradients together, and for each alone, when the others are None."""
    for case in EVERY_CASE:
        for with_bias in [True, False]:
            with subtests.test(case=str(case), with_bias=str(with_bias)):
                inputs = draw(case, with_bias=with_bias)
                doubles = {name: None if tensor is None else tensor.double() for name, tensor in inputs.items()}
                names = tuple(name for name, tensor in inputs.items() if tensor is not None)
                for by in (names, *((name,) for name in names)):
                    expected = second_gradients(run_reference, case, doubles, by=by)
                    assert_near(second_gradients(run_operator, case, inputs, by=by), expected)
                    assert expected["gradient"].abs().max() > 0.01  # a second gradient of zeros would be detected


def test_double_backward_supports_half_inputs_with_float32_weights(subtests):
    """As under autocast: a gradient penalty must support mixed dtypes."""
    for case in EVERY_CASE:
        with subtests.test(case=str(case)):
            inputs = draw(case, dtype=torch.bfloat16)
            doubles = {name: tensor.double() for name, tensor in inputs.items()}
            found = second_gradients(run_operator, case, inputs, by=("x",))
            assert [found[name].dtype for name in inputs] == [tensor.dtype for tensor in inputs.values()]
            assert_near(
                found, second_gradients(run_reference, case, doubles, by=("x",)), 0.05
            )  # some roundings to 8 bits


@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_third_derivatives_are_correct_or_raise(case: Case):
    def third(function, inputs: Inputs) -> Tensor:
        x = inputs["x"].detach().requires_grad_()
        total = function(case, {**inputs, "x": x}).pow(3).sum()
        for _ in range(2):
            (gradient,) = torch.autograd.grad(total, x, create_graph=True)
            total = gradient.square().sum()
        return torch.autograd.grad(total, x)[0]

    inputs = draw(case)
    expected = third(run_reference, {name: tensor.double() for name, tensor in inputs.items()})
    largest = expected.abs().max()
    try:
        found = third(run_operator, inputs)
    except RuntimeError:
        return  # PyTorch raises if the graph of a gradient was not built
    assert_near({"x": found / largest}, {"x": expected / largest}, 1e-3)


def test_frozen_tensors_do_not_change_other_gradients(subtests):
    for case in CASES.values():
        with subtests.test(case=str(case)):
            inputs = draw(case)
            every = output_and_gradients(run_operator, case, inputs)
            for name in inputs:
                alone = {key: tensor.detach().requires_grad_(key == name) for key, tensor in inputs.items()}
                out = run_operator(case, alone)
                gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
                assert torch.autograd.grad(out, alone[name], gradient)[0].equal(every[name])


def test_only_inputs_are_saved_for_backward():
    """Of all tensors with the size of the feature map, only x is saved between forward and backward."""
    case = CASES["lka_pair"]._replace(shape=(2, 5, 40, 40))
    inputs, kept = draw(case), []
    require_grad(inputs)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        run_operator(case, inputs)
    assert [tensor.data_ptr() for tensor in kept if tensor.numel() == 2 * 5 * 40 * 40] == [inputs["x"].data_ptr()]


def test_vmap_supports_inputs_weights_and_biases(subtests):
    for case in CASES.values():
        with subtests.test(case=str(case)):
            several = [draw(case._replace(dilation=seed)) for seed in (1, 2, 3)]  # the dilation is part of the seed
            stacked = {name: torch.stack([inputs[name] for inputs in several], dim=1) for name in several[0]}
            found = torch.func.vmap(lambda inputs: run_operator(case, inputs), in_dims=1)(stacked)
            for one, inputs in zip(found, several, strict=True):
                assert_near({"output": one}, {"output": run_reference_float64(case, inputs)["output"]})
            shared = {**stacked, "x": several[0]["x"]}
            dims = {name: None if name == "x" else 1 for name in shared}
            found = torch.func.vmap(lambda inputs: run_operator(case, inputs), in_dims=(dims,))(shared)
            for one, inputs in zip(found, several, strict=True):
                expected = run_reference_float64(case, {**inputs, "x": several[0]["x"]})["output"]
                assert_near({"output": one}, {"output": expected})


def test_batched_gradients_match_a_loop(subtests):
    """``is_grads_batched``, which Jacobians use."""
    for case in CASES.values():
        with subtests.test(case=str(case)):
            inputs = draw(case)
            leaves = require_grad(inputs)
            out, gradient = run_operator(case, inputs), torch.randn(3, *case.shape)
            batched = torch.autograd.grad(out, leaves, gradient, is_grads_batched=True, retain_graph=True)
            for place in range(3):
                one = torch.autograd.grad(out, leaves, gradient[place], retain_graph=True)
                for found, expected in zip(batched, one, strict=True):
                    assert found[place].equal(expected)


class OperatorModule(nn.Module):
    """A module that calls the operator of a case with its kernels as parameters."""

    def __init__(self, case: Case):
        super().__init__()
        self.case = case
        for name, value in list(draw(case).items())[1:]:
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        return run_operator(self.case, {"x": x, **self._parameters}).square()


def van_nodes(graph: torch.fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if str(node.target).startswith("van.")]


def test_compiled_graph_contains_one_node(subtests):
    for operator in OPERATORS:
        with subtests.test(operator=str(operator)):
            graphs = []

            def note(module: torch.fx.GraphModule, _inputs: list) -> torch.fx.GraphModule:
                graphs.append(module.graph)
                return module

            module, x = OperatorModule(CASES[operator]), torch.randn(2, 5, 9, 8)
            torch.compiler.reset()
            assert torch.compile(module, fullgraph=True, backend=note)(x).equal(module(x))
            assert [van_nodes(graph) for graph in graphs] == [[f"van.{operator}.default"]]


def test_compiled_outputs_and_gradients_match_eager(subtests):
    for case in EVERY_CASE:
        for dynamic in [False, True]:
            with subtests.test(case=str(case), dynamic=str(dynamic)):
                module = OperatorModule(case)
                torch.compiler.reset()
                compile_launch = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
                for shape in [(2, 5, 9, 8), (1, 5, 13, 6)]:
                    x = torch.randn(shape, requires_grad=True)
                    expected = (module(x), *torch.autograd.grad(module(x).sum(), [x, *module.parameters()]))
                    found = (
                        compile_launch(x),
                        *torch.autograd.grad(compile_launch(x).sum(), [x, *module.parameters()]),
                    )
                    for ours, theirs in zip(found, expected, strict=True):
                        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
                torch.compiler.reset()


def test_exported_program_contains_one_node_and_can_be_saved_and_loaded(subtests):
    for operator in OPERATORS:
        with subtests.test(operator=str(operator)):
            module = OperatorModule(CASES[operator]).eval()
            sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=2), 3: torch.export.Dim("w", min=2)}
            program = torch.export.export(module, (torch.randn(2, 5, 9, 8),), dynamic_shapes={"x": sizes})
            assert van_nodes(program.graph) == [f"van.{operator}.default"]
            file = io.BytesIO()
            torch.export.save(program, file)
            file.seek(0)
            exported = torch.export.load(file).module()
            for shape in [(2, 5, 9, 8), (1, 5, 31, 4)]:
                x = torch.randn(shape)
                torch.testing.assert_close(exported(x), module(x), rtol=1e-6, atol=1e-6)


X, WEIGHT = torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3)
INVALID = [
    (X.double(), WEIGHT, None, "x: .*float32, bfloat16 or float16, got torch.float64"),
    (X, WEIGHT.double(), None, "weight: .*torch.float64"),
    (X, WEIGHT, torch.randn(2).double(), "bias: .*torch.float64"),
    (X.int(), WEIGHT, None, "x: .*torch.int32"),
    (X, torch.randn(3, 1, 3, 3), None, r"weight: .*\(2, 1, k, m\).*\(3, 1, 3, 3\).*2 channels"),
    (X, torch.randn(2, 2, 3, 3), None, r"weight: .*\(2, 2, 3, 3\)"),
    (X, torch.randn(2, 3, 3), None, r"weight: .*\(2, 3, 3\)"),
    (X, torch.randn(2, 1, 4, 3), None, r"weight: .*odd.*\(2, 1, 4, 3\)"),
    (X, torch.randn(2, 1, 3, 4), None, r"weight: .*odd.*\(2, 1, 3, 4\)"),
    (X, torch.randn(2, 1, 0, 3), None, r"weight: .*odd.*\(2, 1, 0, 3\)"),
    (X[0], WEIGHT, None, r"x: .*\(N, C, H, W\), got 3: \(2, 5, 5\)"),
    (X, WEIGHT, torch.randn(3), r"bias: .*\(2,\).*\(3,\)"),
    (X, WEIGHT, torch.randn(2, 1), r"bias: .*\(2,\).*\(2, 1\)"),
]


def test_invalid_tensors_raise_shape_error(subtests):
    for x, weight, bias, message in INVALID:
        with subtests.test(message=message):
            with pytest.raises(ShapeError, match=message):
                operators.depthwise(x, weight, bias, 1)
            with pytest.raises(ShapeError, match=message):
                operators.depthwise_gelu(x, weight, bias)
            with pytest.raises(ShapeError, match=message):
                operators.lka_pair(x, weight, bias, WEIGHT, None, 1)
            if x is X:
                with pytest.raises(
                    ShapeError, match=message.replace("weight", "dilated_weight").replace("bias", "dilated_bias")
                ):
                    operators.lka_pair(x, WEIGHT, None, weight, bias, 1)


def test_dilation_below_one_raises_shape_error(run_python):
    """In a separate process, because C++ would divide by it."""
    code = """
import torch
from van.errors import ShapeError
from van.ops import operators
x, weight = torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3)
for dilation in (0, -1):
    for call in (lambda: operators.depthwise(x, weight, None, dilation),
                 lambda: operators.lka_pair(x, weight, None, weight, None, dilation)):
        try:
            call()
        except ShapeError as error:
            print(error)
"""
    lines = run_python(code).splitlines()
    assert len(lines) == 4
    for dilation, line in zip((0, 0, -1, -1), lines, strict=True):
        assert line.startswith("dilation:")
        assert line.endswith(f" {dilation}")


def test_gradient_of_another_shape_raises_shape_error():
    """C++ would read out of bounds."""
    x, weight = torch.randn(2, 5, 9, 8), torch.randn(5, 1, 7, 7)
    with pytest.raises(ShapeError, match=r"gradient: .*\(2, 5, 9, 8\).*\(1, 5, 9, 8\)"):
        operators.depthwise_backward(x[:1], x, weight, None, 3)
    with pytest.raises(ShapeError, match=r"gradient: .*\(2, 5, 9, 8\).*\(2, 5, 3, 8\)"):
        operators.lka_pair_backward(x[:, :, :3], x, weight, None, weight, None, 3)
    with pytest.raises(ShapeError, match=r"gradient: .*\(2, 5, 9, 8\).*\(2, 5, 3, 8\)"):
        operators.depthwise_gelu_backward(x[:, :, :3], x, weight, None)
