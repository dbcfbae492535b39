import contextvars
import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ops.definition import random_kernels, random_map
from van.errors import UsageError
from van.ops import BACKENDS, Kernel, can_run, large_kernel_attention, native, use_backend

FASTEST = "phases" if native.why_not() else "cpu"
HERE = [name for name in BACKENDS if name != "cpu" or FASTEST == "cpu"]


class OperatorsSeen(TorchDispatchMode):
    """Notes the dilation of every convolution that runs, [3, 3] in the reference, and the operators of C++."""

    def __init__(self):
        super().__init__()
        self.dilations, self.native = set(), False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.dilations.add(args[5][0])
        self.native |= func is torch.ops.van.depthwise.default
        return func(*args, **(kwargs or {}))


def backend_that_serves(dtype: torch.dtype = torch.float32) -> str:
    x, kernels = random_map(1, 2, 9, 9, dtype=dtype).detach(), random_kernels(2, dtype=dtype)
    with OperatorsSeen() as seen:
        large_kernel_attention(x, *kernels)
    if seen.native:
        return "cpu"
    return "reference" if 3 in seen.dilations else "phases"


def test_the_fast_backend_serves_floats_on_the_cpu():
    assert backend_that_serves() == FASTEST
    assert backend_that_serves(torch.bfloat16) == "phases"


def test_what_it_cannot_serve_goes_to_the_reference():
    assert backend_that_serves(torch.float64) == "reference"
    assert backend_that_serves(torch.float16) == "reference"


@pytest.mark.parametrize("name", HERE)
def test_the_environment_variable_chooses(name, monkeypatch):
    monkeypatch.setenv("VAN_OPS", name)
    assert backend_that_serves() == name
    monkeypatch.setenv("VAN_OPS", "auto")
    assert backend_that_serves() == FASTEST


@pytest.mark.parametrize("name", HERE)
def test_a_block_of_code_chooses_over_the_environment(name, monkeypatch):
    monkeypatch.setenv("VAN_OPS", "phases" if name == "reference" else "reference")
    with use_backend(name):
        assert backend_that_serves() == name
    assert backend_that_serves() != name


def test_blocks_nest_and_an_error_ends_them():
    with use_backend("reference"):
        with use_backend("auto"):
            assert backend_that_serves() == FASTEST
        assert backend_that_serves() == "reference"
        with pytest.raises(ZeroDivisionError), use_backend("phases"):
            raise ZeroDivisionError
        assert backend_that_serves() == "reference"
    assert backend_that_serves() == FASTEST


def test_a_choice_stays_in_its_thread():
    served, inside = {}, threading.Barrier(2, timeout=60)

    def work(name):
        with use_backend(name):
            inside.wait()  # both threads are within their blocks now
            served[name] = backend_that_serves()
            inside.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("phases", "reference")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert served == {"phases": "phases", "reference": "reference"}


def test_a_thread_started_inside_a_block_does_not_inherit_it():
    served = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: served.append(backend_that_serves()))
        thread.start()
        thread.join()
    assert served == [FASTEST]


def test_a_choice_stays_in_its_context():
    context = contextvars.copy_context()
    block = use_backend("reference")
    context.run(block.__enter__)
    assert context.run(backend_that_serves) == "reference"
    assert backend_that_serves() == FASTEST
    context.run(block.__exit__, None, None, None)
    assert context.run(backend_that_serves) == FASTEST


def test_unknown_names_are_refused_with_the_known_ones(monkeypatch):
    with pytest.raises(UsageError, match="asked for 'cuda'; known: auto, cpu, phases, reference"), use_backend("cuda"):
        pass
    with pytest.raises(UsageError, match="'fast'"):
        can_run("fast", torch.ones(1, 1, 3, 3), Kernel(torch.ones(1, 1, 3, 3)))
    monkeypatch.setenv("VAN_OPS", "refrence")
    with pytest.raises(UsageError, match="asked for 'refrence'; known: auto, cpu, phases, reference"):
        backend_that_serves()


def test_a_backend_asked_for_that_cannot_serve_is_an_error(monkeypatch):
    """Never a silent fall-back: the reference would have served."""
    x, kernels = random_map(1, 2, 9, 9), random_kernels(2)
    message = r"the 'phases' backend cannot serve x \(1, 2, 9, 9\): .*float64"
    with use_backend("phases"), pytest.raises(UsageError, match=message):
        large_kernel_attention(x, *kernels)
    monkeypatch.setenv("VAN_OPS", "phases")
    with pytest.raises(UsageError, match=message):
        large_kernel_attention(x, *kernels)


DILATED = Kernel(torch.ones(2, 1, 7, 7), None, 3)


@pytest.mark.parametrize(
    ("x", "dilated", "reason"),
    [
        (torch.ones(1, 2, 9, 9, device="meta"), DILATED, "x is on meta, not on the CPU"),
        (torch.ones(1, 2, 9, 9, dtype=torch.float64), DILATED, "not faster in torch.float64"),
        (torch.ones(1, 2, 9, 9, dtype=torch.float16), DILATED, "not faster in torch.float16"),
        (torch.ones(1, 2, 9, 9), DILATED._replace(dilation=1), "the kernel is not dilated"),
        (torch.ones(0, 2, 9, 9), DILATED, "x is empty"),
    ],
)
def test_the_reason_against_is_said(x, dilated, reason):
    verdict = can_run("phases", x, dilated)
    assert not verdict.ok
    assert reason in verdict.reason
    assert can_run("reference", x, dilated).ok


def test_the_reason_for_is_said():
    verdict = can_run("phases", torch.ones(1, 2, 9, 9), DILATED)
    assert verdict.ok
    assert "phases" in verdict.reason


def test_the_code_in_cpp_computes_in_float32_alone():
    verdict = can_run("cpu", torch.ones(1, 2, 9, 9, dtype=torch.bfloat16), DILATED)
    assert not verdict.ok
    assert "computes in float32, x is torch.bfloat16" in verdict.reason


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:Converting a tensor to a Python:torch.jit.TracerWarning")
def test_a_tracer_gets_plain_convolutions():
    kernels = random_kernels(2, dtype=torch.float32)
    plain = tuple(Kernel(kernel.weight.detach(), kernel.bias.detach(), kernel.dilation) for kernel in kernels)
    traced = torch.jit.trace(lambda x: large_kernel_attention(x, *plain), torch.ones(1, 2, 9, 9))
    nodes = [node.kind() for node in traced.inlined_graph.nodes()]
    assert sum("convolution" in kind for kind in nodes) == 3
    assert not any("permute" in kind or "reshape" in kind for kind in nodes)


def test_every_backend_answers_alike():
    x, kernels = random_map(2, 3, 11, 8, dtype=torch.float32).detach(), random_kernels(3, dtype=torch.float32)
    answers = []
    for name in HERE:
        with use_backend(name):
            answers.append(large_kernel_attention(x, *kernels))
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], rtol=2e-5, atol=2e-5)
