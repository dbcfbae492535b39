"""Which backend serves a call, who may choose it, and what is said when it cannot."""

import contextvars
import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ops.definition import random_kernels, random_map
from van.errors import ShapeError, UsageError
from van.ops import (
    BACKENDS,
    Kernel,
    can_run,
    depthwise,
    depthwise_gelu,
    large_kernel_attention,
    lka_pair,
    native,
    plain_operators_wanted,
    use_backend,
)

FASTEST = "phases" if native.why_not() else "cpu"
HERE = [name for name in BACKENDS if name != "triton" and (name != "cpu" or FASTEST == "cpu")]
needs_cpp = pytest.mark.skipif(FASTEST != "cpu", reason=f"no native library: {native.why_not()}")


class OperatorsSeen(TorchDispatchMode):
    """Notes the dilation of every convolution that runs, and the names of this package's own operators."""

    def __init__(self):
        super().__init__()
        self.dilations, self.names = set(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.dilations.add(args[5][0])
        if func.namespace == "van":
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def backend_that_serves(dtype: torch.dtype = torch.float32) -> str:
    x, kernels = random_map(1, 2, 9, 9, dtype=dtype).detach(), random_kernels(2, dtype=dtype)
    with OperatorsSeen() as seen:
        large_kernel_attention(x, *kernels)
    if seen.names:
        return "cpu"
    return "reference" if 3 in seen.dilations else "phases"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fastest_backend_serves_on_the_cpu(dtype):
    assert backend_that_serves(dtype) == FASTEST


def test_cpp_serves_float16_and_without_it_the_reference():
    assert backend_that_serves(torch.float16) == ("cpu" if FASTEST == "cpu" else "reference")


def test_what_no_fast_backend_serves_goes_to_the_reference():
    assert backend_that_serves(torch.float64) == "reference"


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


LOCAL, DILATED = Kernel(torch.ones(2, 1, 5, 5)), Kernel(torch.ones(2, 1, 7, 7), None, 3)
EVEN = Kernel(torch.ones(2, 1, 4, 3), None, 3)
X = torch.ones(1, 2, 9, 9)


@needs_cpp
@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: depthwise(X, LOCAL), ["van::depthwise"]),
        (lambda: depthwise(X, DILATED), ["van::depthwise"]),
        (lambda: depthwise(X, EVEN), []),
        (lambda: lka_pair(X, LOCAL, DILATED), ["van::lka_pair"]),
        (lambda: lka_pair(X, DILATED, LOCAL), ["van::depthwise"] * 2),  # the pair's first kernel is undilated
        (lambda: lka_pair(X, LOCAL, EVEN), []),
        (lambda: lka_pair(X, EVEN, DILATED), []),
        (lambda: depthwise_gelu(X, LOCAL), ["van::depthwise_gelu"]),
        (lambda: depthwise_gelu(X, DILATED), ["van::depthwise"]),
        (lambda: depthwise_gelu(X, EVEN._replace(dilation=1)), []),
        (lambda: large_kernel_attention(X, LOCAL, DILATED, Kernel(torch.ones(2, 2, 1, 1))), ["van::lka_pair"]),
    ],
)
def test_each_call_runs_the_operators_made_for_it(call, names):
    with OperatorsSeen() as seen:
        call()
    assert seen.names == names


def test_unknown_names_are_refused_with_the_known_ones(monkeypatch):
    known = "known: auto, triton, cpu, phases, reference"
    with pytest.raises(UsageError, match=f"asked for 'cuda'; {known}"), use_backend("cuda"):
        pass
    with pytest.raises(UsageError, match="'fast'"):
        can_run("fast", torch.ones(1, 1, 3, 3), Kernel(torch.ones(1, 1, 3, 3)))
    monkeypatch.setenv("VAN_OPS", "refrence")
    with pytest.raises(UsageError, match=f"asked for 'refrence'; {known}"):
        backend_that_serves()


@pytest.mark.parametrize("name", ["triton", "phases", "cpu"])
def test_a_backend_asked_for_that_cannot_serve_is_an_error(name, monkeypatch):
    """Never a silent fall-back: the reference would have served."""
    x, kernels = random_map(1, 2, 9, 9), random_kernels(2)
    message = rf"the '{name}' backend cannot serve x \(1, 2, 9, 9\): .*float64"
    with use_backend(name):
        for call in (
            lambda: large_kernel_attention(x, *kernels),
            lambda: lka_pair(x, *kernels[:2]),
            lambda: depthwise(x, kernels[1]),
        ):
            with pytest.raises(UsageError, match=message):
                call()
    monkeypatch.setenv("VAN_OPS", name)
    with pytest.raises(UsageError, match=message):
        large_kernel_attention(x, *kernels)


@pytest.mark.parametrize(
    ("backend", "x", "kernels", "reason"),
    [
        ("phases", torch.ones(1, 2, 9, 9, device="meta"), [LOCAL, DILATED], "x is on meta, not on the CPU"),
        ("phases", X.double(), [LOCAL, DILATED], "not faster in torch.float64"),
        ("phases", X.half(), [LOCAL, DILATED], "not faster in torch.float16"),
        ("phases", X, [LOCAL], "no kernel is dilated, so there are no phases to split"),
        ("phases", X[:0], [LOCAL, DILATED], "x is empty"),
        ("cpu", torch.ones(1, 2, 9, 9, device="meta"), [LOCAL, DILATED], "x is on meta, not on the CPU"),
        ("cpu", X.double(), [LOCAL, DILATED], "compute in float32, x is torch.float64"),
        ("cpu", X.int(), [LOCAL, DILATED], "compute in float32, x is torch.int32"),
        ("cpu", X, [LOCAL, EVEN], "a kernel has an even side"),
        ("triton", X, [LOCAL, DILATED], "x is on cpu, not on a GPU"),
        ("triton", X, [EVEN], "a kernel has an even side"),
        ("triton", X.double(), [LOCAL, DILATED], "compute in float32, x is torch.float64"),
    ],
)
def test_the_reason_against_is_said(backend, x, kernels, reason):
    verdict = can_run(backend, x, *kernels)
    assert not verdict.ok
    assert reason in verdict.reason
    assert can_run("reference", x, *kernels).ok


def test_the_reason_for_is_said():
    for backend, reason in {"phases": "phases", "reference": "definition"}.items():
        verdict = can_run(backend, X, LOCAL, DILATED)
        assert verdict.ok
        assert reason in verdict.reason


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_plain_operators_are_wanted_by_compilers_exporters_and_who_asks_for_the_reference(monkeypatch):
    seen = []

    def note(x: torch.Tensor) -> torch.Tensor:
        seen.append(plain_operators_wanted())
        return x + 1

    torch.jit.trace(note, X, check_trace=False)
    with use_backend("reference"):
        note(X)
    assert seen == [True, True]
    for backend in ("auto", "phases"):
        with use_backend(backend):
            assert not plain_operators_wanted()
    monkeypatch.setenv("VAN_OPS", "reference")
    assert plain_operators_wanted()
    compiled = torch.compile(lambda x: x + 1 if plain_operators_wanted() else x, fullgraph=True, backend="eager")
    monkeypatch.setenv("VAN_OPS", "auto")
    assert compiled(X).equal(X + 1)
    torch.compiler.reset()


@needs_cpp
def test_cpp_says_for_which_processor_it_was_built():
    for x in (X, X.bfloat16(), X.half(), X[:0]):
        verdict = can_run("cpu", x, LOCAL, DILATED)
        assert verdict.ok
        assert verdict.reason == f"C++ built for this processor ({native.instructions()}) serves it"


@pytest.mark.parametrize("backend", HERE)
def test_shapes_that_do_not_fit_are_named_by_every_backend(backend):
    with use_backend(backend):
        with pytest.raises(ShapeError, match=r"kernel.weight is \(2, 1, 7, 7\); x has 3 channels"):
            depthwise(torch.ones(1, 3, 9, 9), DILATED)
        with pytest.raises(ShapeError, match=r"kernel.weight is \(2, 1, 5, 5\); x has 3 channels"):
            depthwise_gelu(torch.ones(1, 3, 9, 9), LOCAL)
        with pytest.raises(ShapeError, match=r"dilated.weight is \(2, 7, 7\)"):
            lka_pair(X, LOCAL, DILATED._replace(weight=torch.ones(2, 7, 7)))
        with pytest.raises(ShapeError, match=r"local.weight is \(3, 1, 5, 5\); x has 2 channels"):
            lka_pair(X, Kernel(torch.ones(3, 1, 5, 5)), DILATED)
        with pytest.raises(ShapeError, match=r"mix.weight is \(2, 2\)"):
            large_kernel_attention(X, LOCAL, DILATED, Kernel(torch.ones(2, 2)))
        with pytest.raises(ShapeError, match="x has 3 dimensions"):
            depthwise(X[0], DILATED)
