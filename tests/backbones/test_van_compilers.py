"""VAN under torch.compile, torch.export, autocast and channels_last: no graph breaks, and the same outputs."""

import shutil
from collections import Counter

import pytest
import timm
import torch
from torch import nn

from van import LKA
from van.ops import native, use_backend

CPP = not native.unavailable_reason()
BLOCKS = 3 + 3 + 5 + 2  # of a van_b0
FLOAT32 = 2e-5  # float32 through 13 blocks, the same products in another order


def create(**options) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("van_b0", num_classes=5, **options)
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            nn.init.constant_(parameter, 0.5)  # at 0.01 the blocks would hardly affect the outputs
    return model


def images(count: int = 2, rows: int = 64, columns: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, rows, columns, generator=torch.Generator().manual_seed(1))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = FLOAT32) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_lka_compiles_without_graph_breaks_at_any_size():
    module = LKA(4)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in [(2, 4, 9, 9), (1, 4, 7, 30), (3, 4, 14, 5)]:
        x = torch.randn(shape, requires_grad=True)
        for actual, reference in zip(
            (compiled(x), *torch.autograd.grad(compiled(x).sum(), [x, *module.parameters()])),
            (module(x), *torch.autograd.grad(module(x).sum(), [x, *module.parameters()])),
            strict=True,
        ):
            assert_close(actual, reference, 1e-4)  # gradients sum over the map


def test_the_network_compiles_without_graph_breaks():
    model = create().eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_close(compiled(images()), model(images()))


def test_a_training_step_compiles_without_graph_breaks():
    plain, other = create().train(), create().train()
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    losses = []
    for model in (plain, compiled):
        loss = model(images()).square().mean()
        loss.backward()
        losses.append(loss)
    assert_close(losses[1], losses[0])
    for actual, reference in zip(other.parameters(), plain.parameters(), strict=True):
        assert_close(actual.grad, reference.grad, 1e-3)  # BatchNorm over a few pixels magnifies float32's rounding


class CallCounter:
    """A compiler backend that runs a graph unchanged, and counts its calls by name."""

    def __init__(self):
        self.calls = Counter()

    def __call__(self, module: torch.fx.GraphModule, _inputs: list) -> torch.fx.GraphModule:
        self.calls.update(str(node.target) for node in module.graph.nodes if node.op.startswith("call"))
        return module


@pytest.mark.skipif(not CPP, reason=f"no native library: {native.unavailable_reason()}")
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_a_compiled_graph_has_two_custom_operators_per_block(backend):
    model, counter = create().eval(), CallCounter()
    with use_backend(backend), torch.no_grad():
        assert_close(torch.compile(model, fullgraph=True, backend=counter)(images()), model(images()))
    assert {name: count for name, count in counter.calls.items() if "van." in name} == {
        "van.lka_pair.default": BLOCKS, "van.depthwise_gelu.default": BLOCKS,
    }  # fmt: skip


def test_with_the_reference_backend_a_compiled_graph_has_plain_convolutions():
    model, counter = create().eval(), CallCounter()
    with use_backend("reference"), torch.no_grad():
        assert_close(torch.compile(model, fullgraph=True, backend=counter)(images()), model(images()))
    assert not any("van." in name for name in counter.calls)
    assert counter.calls["permute"] < BLOCKS  # the norms between stages alone


def test_a_compiled_model_keeps_the_backend_of_the_environment(monkeypatch):
    monkeypatch.setenv("VAN_OPS", "reference")
    model, counter = create().eval(), CallCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        expected = compiled(images())
        monkeypatch.delenv("VAN_OPS")
        assert compiled(images()).equal(expected)
    assert not any("van." in name for name in counter.calls)


@pytest.mark.skipif(not CPP, reason=f"no native library: {native.unavailable_reason()}")
def test_a_compiled_model_follows_use_backend():
    """It is compiled once for each backend."""
    model, counter = create().eval(), CallCounter()
    compiled, outputs = torch.compile(model, fullgraph=True, backend=counter), {}
    with torch.no_grad():
        for name in ("reference", "cpu", "reference", "cpu"):
            with use_backend(name):
                output = compiled(images())
                assert output.equal(outputs.setdefault(name, output))
    assert counter.calls["van.lka_pair.default"] == BLOCKS
    assert_close(outputs["cpu"], outputs["reference"])


def test_the_space_to_batch_backend_compiles_without_graph_breaks():
    model, counter = create().eval(), CallCounter()
    with use_backend("space_to_batch"), torch.no_grad():
        assert_close(torch.compile(model, fullgraph=True, backend=counter)(images()), model(images()))
    assert not any("van." in name for name in counter.calls)
    assert counter.calls["permute"] >= 2 * BLOCKS  # to split a map, and to join it again


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler")
def test_the_network_compiles_with_inductor():
    model = create().eval()
    with torch.no_grad():
        assert_close(torch.compile(model, fullgraph=True)(images()), model(images()), 1e-4)


def test_one_exported_program_supports_every_batch_and_image_size():
    """From 33 px: at 32 the last map has one pixel, and torch.export specializes sides of one."""
    model = create().eval()
    batch, rows, columns = (torch.export.Dim(name, min=low) for name, low in [("n", 1), ("h", 33), ("w", 33)])
    program = torch.export.export(model, (images(2, 64, 96),), dynamic_shapes={"x": {0: batch, 2: rows, 3: columns}})
    with torch.no_grad():
        for shape in [(2, 64, 96), (1, 33, 33), (3, 45, 131)]:
            assert_close(program.module()(images(*shape)), model(images(*shape)))


def test_a_program_exported_with_the_reference_backend_has_plain_dilated_convolutions():
    """It runs without this package."""
    with use_backend("reference"):
        program = torch.export.export(create().eval(), (images(),))
    calls = [node for node in program.graph.nodes if node.target == torch.ops.aten.conv2d.default]
    dilations = [node.args[5] for node in calls if len(node.args) > 5]
    assert dilations.count([3, 3]) == BLOCKS
    assert not any("van." in str(node.target) for node in program.graph.nodes)
    assert (
        max(len(node.meta["val"].shape) for node in program.graph.nodes if hasattr(node.meta.get("val"), "shape")) == 4
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_forward_and_backward(dtype):
    model, exact = create().train(), create().train()
    with torch.autocast("cpu", dtype=dtype):
        out = model(images())
    assert out.dtype == dtype
    out.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    expected = exact(images())
    assert (out.float() - expected).abs().max() < 0.05 * expected.abs().max()  # 8 and 11 bits through 13 blocks


def test_channels_last_gives_the_same_outputs_in_channels_last():
    model, other = create().eval(), create().eval().to(memory_format=torch.channels_last)
    x = images(rows=96).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        maps = other.forward_intermediates(x, intermediates_only=True)
        assert_close(other(x), model(images(rows=96)))
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
    model(images(rows=96)).square().mean().backward()
    other(x).square().mean().backward()
    for actual, reference in zip(other.parameters(), model.parameters(), strict=True):
        assert_close(actual.grad, reference.grad, 1e-3)
