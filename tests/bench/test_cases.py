"""The rows of a table are those that were asked for, in their order, and what cannot be is refused."""

import re

import pytest

from van.bench.cases import KERNEL_SIZES, RESOLUTIONS_PX, growing, side_by_side
from van.bench.networks import NETWORKS
from van.bench.rows import Case
from van.bench.ways import WAYS, ways_of
from van.errors import UsageError


def test_a_van_goes_the_ways_that_are_compared_and_a_peer_the_usual_one():
    cases = side_by_side(["van_b0", "swin_tiny"], batch_size=4, size_px=96)
    ways = ["van", "reference", "compile", "onnxruntime", "openvino"]
    expected = [*(("van_b0", way) for way in ways), ("swin_tiny", "eager")]
    assert [(case.network, case.way) for case in cases] == expected
    assert {(case.batch_size, case.size_px, case.kernel_size) for case in cases} == {(4, 96, None)}


def test_ways_asked_for_are_gone_by_those_they_lead_to():
    cases = side_by_side(["van_b0", "resnet50"], ways=["eager", "compile", "van"], batch_size=1, size_px=64)
    assert [(case.network, case.way) for case in cases] == [
        ("van_b0", "compile"), ("van_b0", "van"), ("resnet50", "eager"), ("resnet50", "compile"),
    ]  # fmt: skip


def test_asking_twice_measures_once():
    cases = side_by_side(["van_b0", "van_b0"], ways=["van", "van"], batch_size=1, size_px=64)
    assert cases == [Case(network="van_b0", way="van", batch_size=1, size_px=64)]


def test_every_network_has_a_usual_way_and_every_way_leads_somewhere():
    assert {way for network in NETWORKS.values() for way in ways_of(network)} == set(WAYS)
    assert all(side_by_side([name], batch_size=1, size_px=64) for name in NETWORKS)


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (16, [1, 2, 4, 8, 16]), (20, [1, 2, 4, 8, 16, 20])]
)
def test_the_batch_grows_by_doubling_up_to_the_one_asked_for(most, sizes):
    cases = growing("batch", ["van_b0"], ways=["van"], batch_size=most, size_px=64)
    assert [case.batch_size for case in cases] == sizes


def test_pictures_grow_from_the_size_asked_for_to_1024():
    assert [case.size_px for case in growing("resolution", ["swin_tiny"], batch_size=2, size_px=224)] == list(
        RESOLUTIONS_PX
    )
    assert RESOLUTIONS_PX[0] == 224
    assert RESOLUTIONS_PX[-1] == 1024
    assert [case.size_px for case in growing("resolution", ["swin_tiny"], batch_size=2, size_px=700)] == [
        700,
        832,
        1024,
    ]


def test_kernels_grow_on_both_ways_of_a_van_at_each_size():
    cases = growing("kernel", ["van_b1"], batch_size=2, size_px=64)
    assert [(case.kernel_size, case.way) for case in cases] == [
        (kernel, way) for kernel in KERNEL_SIZES for way in ("van", "reference")
    ]
    assert 21 in KERNEL_SIZES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["van_b9"], []), "--models: there is no 'van_b9' to measure; known: van_b0, van_b1"),
        ((["van_b0"], ["tvm"]), "--ways: there is no 'tvm'; known: van, reference, eager"),
        ((["van_b0"], ["eager"]), "--ways: none of eager leads to van_b0; wanted some of van, reference"),
        (
            (["resnet50"], ["van", "reference"]),
            "--ways: none of van, reference leads to resnet50; wanted some of eager",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    networks, ways = arguments
    with pytest.raises(UsageError, match=re.escape(message)):
        side_by_side(networks, ways=ways, batch_size=1, size_px=64)


def test_a_network_without_large_kernels_cannot_grow_them():
    with pytest.raises(UsageError, match="--grow kernel: resnet50 has no large kernel attention"):
        growing("kernel", ["van_b0", "resnet50"], batch_size=1, size_px=64)
