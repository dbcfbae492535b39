"""Backend selection: automatic, by environment variable, by ``use_backend``, and its errors."""

import contextvars
import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ops.definition import random_feature_map, random_kernels
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
    use_backend,
    use_reference,
)

FASTEST = "space_to_batch" if native.unavailable_reason() else "cpu"
AVAILABLE = [name for name in BACKENDS if name != "triton" and (name != "cpu" or FASTEST == "cpu")]
requires_cpp = pytest.mark.skipif(FASTEST != "cpu", reason=f"no native library: {native.unavailable_reason()}")


class OperatorRecorder(TorchDispatchMode):
    """Records the dilation of every convolution that runs, and the names of this package's operators."""

    def __init__(self):
        super().__init__()
        self.dilations, self.names = set(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.dilations.add(args[5][0])
        if func.namespace == "van":
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def backend_in_use(dtype: torch.dtype = torch.float32) -> str:
    x, kernels = random_feature_map(1, 2, 9, 9, dtype=dtype).detach(), random_kernels(2, dtype=dtype)
    with OperatorRecorder() as recorder:
        large_kernel_attention(x, *kernels)
    if recorder.names:
        return "cpu"
    return "reference" if 3 in recorder.dilations else "space_to_batch"


def test_auto_selects_the_fastest_backend_on_the_cpu(subtests):
    for dtype in [torch.float32, torch.bfloat16]:
        with subtests.test(dtype=str(dtype)):
            assert backend_in_use(dtype) == FASTEST


def test_float16_runs_on_cpp_or_else_on_the_reference():
    assert backend_in_use(torch.float16) == ("cpu" if FASTEST == "cpu" else "reference")


def test_float64_runs_on_the_reference():
    assert backend_in_use(torch.float64) == "reference"


@pytest.mark.parametrize("name", AVAILABLE)
def test_environment_variable_selects_the_backend(name, monkeypatch):
    monkeypatch.setenv("VAN_OPS", name)
    assert backend_in_use() == name
    monkeypatch.setenv("VAN_OPS", "auto")
    assert backend_in_use() == FASTEST


@pytest.mark.parametrize("name", AVAILABLE)
def test_use_backend_overrides_the_environment_variable(name, monkeypatch):
    monkeypatch.setenv("VAN_OPS", "space_to_batch" if name == "reference" else "reference")
    with use_backend(name):
        assert backend_in_use() == name
    assert backend_in_use() != name


def test_use_backend_nests_and_is_reset_after_an_exception():
    with use_backend("reference"):
        with use_backend("auto"):
            assert backend_in_use() == FASTEST
        assert backend_in_use() == "reference"
        with pytest.raises(ZeroDivisionError), use_backend("space_to_batch"):
            raise ZeroDivisionError
        assert backend_in_use() == "reference"
    assert backend_in_use() == FASTEST


def test_use_backend_is_local_to_its_thread():
    served, inside = {}, threading.Barrier(2, timeout=60)

    def work(name):
        with use_backend(name):
            inside.wait()  # both threads are within their blocks now
            served[name] = backend_in_use()
            inside.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("space_to_batch", "reference")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert served == {"space_to_batch": "space_to_batch", "reference": "reference"}


def test_new_threads_do_not_inherit_use_backend():
    served = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: served.append(backend_in_use()))
        thread.start()
        thread.join()
    assert served == [FASTEST]


def test_use_backend_is_local_to_its_context():
    context = contextvars.copy_context()
    block = use_backend("reference")
    context.run(block.__enter__)
    assert context.run(backend_in_use) == "reference"
    assert backend_in_use() == FASTEST
    context.run(block.__exit__, None, None, None)
    assert context.run(backend_in_use) == FASTEST


LOCAL, DILATED = Kernel(torch.ones(2, 1, 5, 5)), Kernel(torch.ones(2, 1, 7, 7), None, 3)
EVEN = Kernel(torch.ones(2, 1, 4, 3), None, 3)
X = torch.ones(1, 2, 9, 9)


@requires_cpp
def test_calls_dispatch_to_the_expected_operators(subtests):
    for call, names in [
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
    ]:
        with subtests.test(call=str(call), names=str(names)):
            with OperatorRecorder() as recorder:
                call()
            assert recorder.names == names


def test_unknown_backends_raise_usage_error(monkeypatch):
    known = "auto, triton, cpu, space_to_batch, reference"
    with pytest.raises(UsageError, match=f"VAN_OPS.*{known}.*'cuda'"), use_backend("cuda"):
        pass
    with pytest.raises(UsageError, match="'fast'"):
        can_run("fast", torch.ones(1, 1, 3, 3), Kernel(torch.ones(1, 1, 3, 3)))
    monkeypatch.setenv("VAN_OPS", "refrence")
    with pytest.raises(UsageError, match=f"VAN_OPS.*{known}.*'refrence'"):
        backend_in_use()


@pytest.mark.parametrize("name", ["triton", "space_to_batch", "cpu"])
def test_selected_backend_that_cannot_run_raises_usage_error(name, monkeypatch):
    """Never a silent fallback, although the reference could run the call."""
    x, kernels = random_feature_map(1, 2, 9, 9), random_kernels(2)
    message = rf"'{name}'.*\(1, 2, 9, 9\).*float64"
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


def test_can_run_returns_the_reason_if_unavailable(subtests):
    for backend, x, kernels, reason in [
        ("space_to_batch", torch.ones(1, 2, 9, 9, device="meta"), [LOCAL, DILATED], "got one on meta"),
        ("space_to_batch", X.double(), [LOCAL, DILATED], "torch.float64"),
        ("space_to_batch", X.half(), [LOCAL, DILATED], "torch.float16"),
        ("space_to_batch", X, [LOCAL], "no kernel is dilated"),
        ("space_to_batch", X[:0], [LOCAL, DILATED], "x is empty"),
        ("cpu", torch.ones(1, 2, 9, 9, device="meta"), [LOCAL, DILATED], "got one on meta"),
        ("cpu", X.double(), [LOCAL, DILATED], "torch.float64"),
        ("cpu", X.int(), [LOCAL, DILATED], "torch.int32"),
        ("cpu", X, [LOCAL, EVEN], "expected odd, got 4"),
        ("triton", X, [LOCAL, DILATED], "got one on cpu"),
        ("triton", X, [EVEN], "expected odd, got 4"),
        ("triton", X.double(), [LOCAL, DILATED], "torch.float64"),
        ("triton", X, [Kernel(torch.ones(2, 1, 23, 23))], "expected at most 21, got 23"),
    ]:
        with subtests.test(backend=str(backend), x=str(x), kernels=str(kernels), reason=str(reason)):
            availability = can_run(backend, x, *kernels)
            assert not availability.ok
            assert reason in availability.reason
            assert can_run("reference", x, *kernels).ok


def test_can_run_returns_the_reason_if_available():
    for backend, reason in {"space_to_batch": "undilated", "reference": "everywhere"}.items():
        availability = can_run(backend, X, LOCAL, DILATED)
        assert availability.ok
        assert reason in availability.reason


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_use_reference_is_true_for_compilers_exporters_and_the_reference_backend(monkeypatch):
    results = []

    def note(x: torch.Tensor) -> torch.Tensor:
        results.append(use_reference())
        return x + 1

    torch.jit.trace(note, X, check_trace=False)
    with use_backend("reference"):
        note(X)
    assert results == [True, True]
    for backend in ("auto", "space_to_batch"):
        with use_backend(backend):
            assert not use_reference()
    monkeypatch.setenv("VAN_OPS", "reference")
    assert use_reference()
    compile_launch = torch.compile(lambda x: x + 1 if use_reference() else x, fullgraph=True, backend="eager")
    monkeypatch.setenv("VAN_OPS", "auto")
    assert compile_launch(X).equal(X + 1)
    torch.compiler.reset()


@requires_cpp
def test_cpp_reason_names_the_instruction_set():
    for x in (X, X.bfloat16(), X.half(), X[:0]):
        availability = can_run("cpu", x, LOCAL, DILATED)
        assert availability.ok
        assert f"({native.instruction_set()})" in availability.reason


def test_every_backend_raises_shape_error_for_mismatched_shapes(subtests):
    for backend in AVAILABLE:
        with subtests.test(backend=str(backend)), use_backend(backend):
            with pytest.raises(ShapeError, match=r"kernel.weight.*\(3, 1, k, k\).*\(2, 1, 7, 7\).* 3 channels"):
                depthwise(torch.ones(1, 3, 9, 9), DILATED)
            with pytest.raises(ShapeError, match=r"kernel.weight.*\(3, 1, k, k\).*\(2, 1, 5, 5\).* 3 channels"):
                depthwise_gelu(torch.ones(1, 3, 9, 9), LOCAL)
            with pytest.raises(ShapeError, match=r"dilated.weight.*\(2, 7, 7\)"):
                lka_pair(X, LOCAL, DILATED._replace(weight=torch.ones(2, 7, 7)))
            with pytest.raises(ShapeError, match=r"local.weight.*\(2, 1, k, k\).*\(3, 1, 5, 5\).* 2 channels"):
                lka_pair(X, Kernel(torch.ones(3, 1, 5, 5)), DILATED)
            with pytest.raises(ShapeError, match=r"mix.weight.*\(2, 2, 1, 1\).*\(2, 2\)"):
                large_kernel_attention(X, LOCAL, DILATED, Kernel(torch.ones(2, 2)))
            with pytest.raises(ShapeError, match=r"x: .*3: \(2, 9, 9\)"):
                depthwise(X[0], DILATED)
