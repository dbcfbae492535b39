"""Benchmark cases: comparisons and sweeps in the requested order, and errors for unsupported selections."""

import pytest

from van.bench.backends import BACKENDS, supported_backends
from van.bench.cases import KERNEL_SIZES, RESOLUTIONS_PX, comparison_cases, sweep_cases
from van.bench.networks import NETWORKS
from van.bench.rows import Case
from van.errors import UsageError


def test_default_backends_of_vans_and_peers():
    cases = comparison_cases(["van_b0", "swin_tiny"], batch_size=4, image_size=96)
    backends = ["van", "reference", "compile", "onnxruntime", "openvino"]
    expected = [*(("van_b0", backend) for backend in backends), ("swin_tiny", "eager")]
    assert [(case.network, case.backend) for case in cases] == expected
    assert {(case.batch_size, case.image_size, case.kernel_size) for case in cases} == {(4, 96, None)}


def test_selected_backends_apply_where_supported():
    cases = comparison_cases(["van_b0", "resnet50"], backends=["eager", "compile", "van"], batch_size=1, image_size=64)
    assert [(case.network, case.backend) for case in cases] == [
        ("van_b0", "compile"), ("van_b0", "van"), ("resnet50", "eager"), ("resnet50", "compile"),
    ]  # fmt: skip


def test_duplicates_are_removed():
    cases = comparison_cases(["van_b0", "van_b0"], backends=["van", "van"], batch_size=1, image_size=64)
    assert cases == [Case(network="van_b0", backend="van", batch_size=1, image_size=64)]


def test_every_network_has_a_default_and_every_backend_a_network():
    assert {backend for network in NETWORKS.values() for backend in supported_backends(network)} == set(BACKENDS)
    assert all(comparison_cases([name], batch_size=1, image_size=64) for name in NETWORKS)


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (16, [1, 2, 4, 8, 16]), (20, [1, 2, 4, 8, 16, 20])]
)
def test_batch_sweep_doubles_up_to_the_batch_size(batch_size, sizes):
    cases = sweep_cases("batch", ["van_b0"], backends=["van"], batch_size=batch_size, image_size=64)
    assert [case.batch_size for case in cases] == sizes


def test_resolution_sweep_runs_from_the_image_size_to_1024():
    assert [case.image_size for case in sweep_cases("resolution", ["swin_tiny"], batch_size=2, image_size=224)] == list(
        RESOLUTIONS_PX
    )
    assert RESOLUTIONS_PX[0] == 224
    assert RESOLUTIONS_PX[-1] == 1024
    assert [case.image_size for case in sweep_cases("resolution", ["swin_tiny"], batch_size=2, image_size=700)] == [
        700,
        832,
        1024,
    ]


def test_kernel_sweep_covers_both_backends_at_each_size():
    cases = sweep_cases("kernel", ["van_b1"], batch_size=2, image_size=64)
    assert [(case.kernel_size, case.backend) for case in cases] == [
        (kernel, backend) for kernel in KERNEL_SIZES for backend in ("van", "reference")
    ]
    assert 21 in KERNEL_SIZES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["van_b9"], []), r"--models.*van_b0, van_b1.*'van_b9'"),
        ((["van_b0"], ["tvm"]), r"--backends.*van, reference, eager.*'tvm'"),
        ((["van_b0"], ["eager"]), "--backends.*van, reference.*van_b0.*eager"),
        ((["resnet50"], ["van", "reference"]), "--backends.*eager.*resnet50.*van, reference"),
    ],
)
def test_unknown_or_unsupported_selections_raise_usage_error(arguments, message):
    networks, backends = arguments
    with pytest.raises(UsageError, match=message):
        comparison_cases(networks, backends=backends, batch_size=1, image_size=64)


def test_kernel_sweep_requires_large_kernel_attention():
    with pytest.raises(UsageError, match=r"--sweep kernel.*resnet50"):
        sweep_cases("kernel", ["van_b0", "resnet50"], batch_size=1, image_size=64)
