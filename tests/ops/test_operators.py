"""What PyTorch is told of the operators: shapes, gradients, gradients of gradients, vmap, compiling and exporting."""

import io

import pytest
import torch
from torch import Tensor, nn

from ops.cases import LAYOUTS, OPERATORS, Case, Inputs, answers, assert_near, by_definition, by_operator, draw, truth
from van.errors import ShapeError
from van.ops import native, operators

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=f"no native library: {native.why_not()}")

CASES = {
    "depthwise": Case("depthwise", (2, 5, 9, 8)),
    "lka_pair": Case("lka_pair", (2, 5, 9, 8)),
    "depthwise_gelu": Case("depthwise_gelu", (2, 5, 9, 8), (3, 3), 1),
}
UNDILATED = Case("depthwise", (2, 5, 9, 8), (5, 3), 1)  # float32: PyTorch's convolution forward, C++ backward
OTHER_GELU = Case("depthwise_gelu", (2, 5, 9, 8), (5, 3), 1)  # not 3 x 3: in two steps
EVERY_CASE = [*CASES.values(), UNDILATED, OTHER_GELU]


def leaves_of(inputs: Inputs) -> list[Tensor]:
    return [tensor.requires_grad_() for tensor in inputs.values() if tensor is not None]


def opcheck_both(case: Case, inputs: Inputs) -> None:
    """Hold the operator and its gradients to the rules of torch.library."""
    dilation = () if case.operator == "depthwise_gelu" else (case.dilation,)
    gradient = torch.randn(case.shape).to(inputs["x"].dtype).requires_grad_()
    leaves_of(inputs)
    torch.library.opcheck(getattr(operators, case.operator), (*inputs.values(), *dilation))
    backward = getattr(operators, f"{case.operator}_backward")
    torch.library.opcheck(backward, (gradient, *inputs.values(), *dilation))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.library reads it of its own copies
class TestTheRulesOfTorchLibrary:
    @pytest.mark.parametrize("with_bias", [True, False])
    @pytest.mark.parametrize("case", EVERY_CASE, ids=str)
    def test_hold_with_and_without_biases(self, case: Case, with_bias: bool):
        opcheck_both(case, draw(case, with_bias=with_bias))

    @pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("case", CASES.values(), ids=str)
    def test_hold_for_halves(self, case: Case, weight_dtype: torch.dtype):
        opcheck_both(case, draw(case, dtype=torch.bfloat16, weight_dtype=weight_dtype, layout=LAYOUTS[0]))

    @pytest.mark.parametrize("case", EVERY_CASE, ids=str)
    def test_hold_for_maps_and_weights_of_other_strides(self, case: Case):
        inputs = draw(case)
        strided = torch.randn(2, 10, 9, 16)[:, ::2, :, ::2]
        opcheck_both(case, {**inputs, "x": strided})
        for restride in (lambda w: w.mT.contiguous().mT, lambda w: w.to(memory_format=torch.channels_last)):
            other = {name: restride(value) if "weight" in name else value for name, value in inputs.items()}
            opcheck_both(case, other)

    def test_hold_where_every_tensor_has_a_dtype_of_its_own(self):
        case = CASES["lka_pair"]
        dtypes = {"local_bias": torch.float16, "dilated_weight": torch.bfloat16}
        inputs = {name: value.to(dtypes.get(name, value.dtype)) for name, value in draw(case).items()}
        opcheck_both(case, inputs)

    @pytest.mark.parametrize("case", EVERY_CASE, ids=str)
    def test_hold_for_an_empty_batch(self, case: Case):
        case = case._replace(shape=(0, *case.shape[1:]))
        opcheck_both(case, draw(case))


def second_answers(function, case: Case, inputs: Inputs, *, by: tuple[str, ...]) -> dict[str, Tensor]:
    """Gradients, by every input and by the first gradient given, of the squares of the gradients named in ``by``."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items() if tensor is not None}
    out = function(case, {name: leaves.get(name) for name in inputs})
    given = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype).requires_grad_()
    first = torch.autograd.grad(out, [leaves[name] for name in by], given, create_graph=True)
    penalty = sum(gradient.square().sum() for gradient in first)
    leaves["given"] = given
    seconds = torch.autograd.grad(penalty, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, seconds, strict=True))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("case", EVERY_CASE, ids=str)
def test_gradients_of_gradients_are_those_of_the_definition(case: Case, with_bias: bool):
    """Of all first gradients together, and of each alone, when the others come back as nothing."""
    inputs = draw(case, with_bias=with_bias)
    doubles = {name: None if tensor is None else tensor.double() for name, tensor in inputs.items()}
    names = tuple(name for name, tensor in inputs.items() if tensor is not None)
    for by in (names, *((name,) for name in names)):
        wanted = second_answers(by_definition, case, doubles, by=by)
        assert_near(second_answers(by_operator, case, inputs, by=by), wanted)
        assert wanted["given"].abs().max() > 0.01  # so a second gradient of zeros would be seen


@pytest.mark.parametrize("case", EVERY_CASE, ids=str)
def test_gradients_of_gradients_of_a_half_map_under_float32_weights(case: Case):
    """As autocast makes them: a gradient penalty must not fail on unlike dtypes."""
    inputs = draw(case, dtype=torch.bfloat16)
    doubles = {name: tensor.double() for name, tensor in inputs.items()}
    found = second_answers(by_operator, case, inputs, by=("x",))
    assert [found[name].dtype for name in inputs] == [tensor.dtype for tensor in inputs.values()]
    assert_near(found, second_answers(by_definition, case, doubles, by=("x",)), 0.05)  # some roundings to 8 bits


@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_third_gradients_are_right_or_refused_but_never_wrong(case: Case):
    def third(function, inputs: Inputs) -> Tensor:
        x = inputs["x"].detach().requires_grad_()
        total = function(case, {**inputs, "x": x}).pow(3).sum()
        for _ in range(2):
            (gradient,) = torch.autograd.grad(total, x, create_graph=True)
            total = gradient.square().sum()
        return torch.autograd.grad(total, x)[0]

    inputs = draw(case)
    wanted = third(by_definition, {name: tensor.double() for name, tensor in inputs.items()})
    largest = wanted.abs().max()
    try:
        found = third(by_operator, inputs)
    except RuntimeError:
        return  # PyTorch's own answer to a gradient that was not built
    assert_near({"x": found / largest}, {"x": wanted / largest}, 1e-3)


@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_a_frozen_tensor_changes_no_other_gradient(case: Case):
    inputs = draw(case)
    every = answers(by_operator, case, inputs)
    for name in inputs:
        alone = {key: tensor.detach().requires_grad_(key == name) for key, tensor in inputs.items()}
        out = by_operator(case, alone)
        given = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        assert torch.autograd.grad(out, alone[name], given)[0].equal(every[name])


def test_nothing_is_kept_but_the_inputs():
    """What a training step holds between its passes, in tensors the size of the map: x alone."""
    case = CASES["lka_pair"]._replace(shape=(2, 5, 40, 40))
    inputs, kept = draw(case), []
    leaves_of(inputs)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        by_operator(case, inputs)
    assert [tensor.data_ptr() for tensor in kept if tensor.numel() == 2 * 5 * 40 * 40] == [inputs["x"].data_ptr()]


@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_vmap_maps_over_pictures_kernels_and_biases(case: Case):
    several = [draw(case._replace(dilation=seed)) for seed in (1, 2, 3)]  # the dilation is part of the seed
    stacked = {name: torch.stack([inputs[name] for inputs in several], dim=1) for name in several[0]}
    found = torch.func.vmap(lambda inputs: by_operator(case, inputs), in_dims=1)(stacked)
    for one, inputs in zip(found, several, strict=True):
        assert_near({"output": one}, {"output": truth(case, inputs)["output"]})
    shared = {**stacked, "x": several[0]["x"]}
    dims = {name: None if name == "x" else 1 for name in shared}
    found = torch.func.vmap(lambda inputs: by_operator(case, inputs), in_dims=(dims,))(shared)
    for one, inputs in zip(found, several, strict=True):
        wanted = truth(case, {**inputs, "x": several[0]["x"]})["output"]
        assert_near({"output": one}, {"output": wanted})


@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_a_batch_of_gradients_is_mapped_over(case: Case):
    """``is_grads_batched``, which a Jacobian asks for."""
    inputs = draw(case)
    leaves = leaves_of(inputs)
    out, given = by_operator(case, inputs), torch.randn(3, *case.shape)
    batched = torch.autograd.grad(out, leaves, given, is_grads_batched=True, retain_graph=True)
    for place in range(3):
        one = torch.autograd.grad(out, leaves, given[place], retain_graph=True)
        for found, wanted in zip(batched, one, strict=True):
            assert found[place].equal(wanted)


class Calling(nn.Module):
    """A case's operator as a module over its kernels."""

    def __init__(self, case: Case):
        super().__init__()
        self.case = case
        for name, value in list(draw(case).items())[1:]:
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        return by_operator(self.case, {"x": x, **self._parameters}).square()


def van_nodes(graph: torch.fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if str(node.target).startswith("van.")]


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_compiler_sees_one_node(operator: str):
    graphs = []

    def note(module: torch.fx.GraphModule, _inputs: list) -> torch.fx.GraphModule:
        graphs.append(module.graph)
        return module

    module, x = Calling(CASES[operator]), torch.randn(2, 5, 9, 8)
    torch.compiler.reset()
    assert torch.compile(module, fullgraph=True, backend=note)(x).equal(module(x))
    assert [van_nodes(graph) for graph in graphs] == [[f"van.{operator}.default"]]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", EVERY_CASE, ids=str)
def test_compiled_whole_it_answers_alike_forward_and_backward(case: Case, dynamic: bool):
    module = Calling(case)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in [(2, 5, 9, 8), (1, 5, 13, 6)]:
        x = torch.randn(shape, requires_grad=True)
        wanted = (module(x), *torch.autograd.grad(module(x).sum(), [x, *module.parameters()]))
        found = (compiled(x), *torch.autograd.grad(compiled(x).sum(), [x, *module.parameters()]))
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.compiler.reset()


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_exported_program_holds_one_node_and_can_be_saved_and_loaded(operator: str):
    module = Calling(CASES[operator]).eval()
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=2), 3: torch.export.Dim("w", min=2)}
    program = torch.export.export(module, (torch.randn(2, 5, 9, 8),), dynamic_shapes={"x": sizes})
    assert van_nodes(program.graph) == [f"van.{operator}.default"]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for shape in [(2, 5, 9, 8), (1, 5, 31, 4)]:
        x = torch.randn(shape)
        torch.testing.assert_close(loaded(x), module(x), rtol=1e-6, atol=1e-6)


X, WEIGHT = torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3)
UNFIT = [
    (X.double(), WEIGHT, None, "x is torch.float64; the fast operators take float32, bfloat16 and float16"),
    (X, WEIGHT.double(), None, "weight is torch.float64"),
    (X, WEIGHT, torch.randn(2).double(), "bias is torch.float64"),
    (X.int(), WEIGHT, None, "x is torch.int32"),
    (X, torch.randn(3, 1, 3, 3), None, r"weight \(3, 1, 3, 3\); wanted \(N, C, H, W\) and \(C, 1, k, m\)"),
    (X, torch.randn(2, 2, 3, 3), None, r"weight \(2, 2, 3, 3\); wanted"),
    (X, torch.randn(2, 3, 3), None, r"weight \(2, 3, 3\); wanted"),
    (X, torch.randn(2, 1, 4, 3), None, "k and m odd"),
    (X, torch.randn(2, 1, 3, 4), None, "k and m odd"),
    (X, torch.randn(2, 1, 0, 3), None, "k and m odd"),
    (X[0], WEIGHT, None, r"x is \(2, 5, 5\) .* wanted \(N, C, H, W\)"),
    (X, WEIGHT, torch.randn(3), r"bias is \(3,\); wanted \(2,\)"),
    (X, WEIGHT, torch.randn(2, 1), r"bias is \(2, 1\); wanted \(2,\)"),
]


@pytest.mark.parametrize(("x", "weight", "bias", "message"), UNFIT)
def test_what_the_cpp_code_must_not_be_given_is_refused(x, weight, bias, message):
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


def test_a_dilation_below_one_is_refused(run_python):
    """In an interpreter of its own: C++ would divide by it."""
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
    said = run_python(code).splitlines()
    assert len(said) == 4
    assert all(f"dilation is {dilation}" in line for dilation, line in zip((0, 0, -1, -1), said, strict=True))


def test_a_gradient_of_another_shape_is_refused():
    """C++ would read past its end."""
    x, weight = torch.randn(2, 5, 9, 8), torch.randn(5, 1, 7, 7)
    with pytest.raises(ShapeError, match=r"gradient is \(1, 5, 9, 8\); wanted the shape of x, \(2, 5, 9, 8\)"):
        operators.depthwise_backward(x[:1], x, weight, None, 3)
    with pytest.raises(ShapeError, match="gradient is"):
        operators.lka_pair_backward(x[:, :, :3], x, weight, None, weight, None, 3)
    with pytest.raises(ShapeError, match="gradient is"):
        operators.depthwise_gelu_backward(x[:, :, :3], x, weight, None)
