"""Which rows a table has: networks side by side, or a few of them while something grows."""

from collections.abc import Sequence

from van.bench.networks import NETWORKS
from van.bench.rows import Case
from van.bench.ways import WAYS, ways_of
from van.errors import UsageError

RESOLUTIONS_PX = (224, 320, 448, 640, 832, 1024)
KERNEL_SIZES = (7, 14, 21, 28, 35, 53)
"""Of large kernel attention, in pixels: the paper's four, and two larger ones."""
_USUAL = ("van", "reference", "compile", "onnxruntime", "openvino")
_IN_PYTORCH = ("van", "reference", "eager")


def side_by_side(networks: Sequence[str], *, ways: Sequence[str] = (), batch_size: int, size_px: int) -> list[Case]:
    """Every network on every way that was asked for and leads there.

    Args:
        networks: their names.
        ways: their names; none is every way but ``van_compile`` for a VAN and ``eager`` for the others.
        batch_size, size_px: of every case.

    Raises:
        UsageError: there is no network or way of that name, or no way for one of the networks.
    """
    return [
        Case(network=name, way=way, batch_size=batch_size, size_px=size_px)
        for name in _known(networks)
        for way in _chosen(name, ways, usual=_USUAL if NETWORKS[name].is_van else ("eager",))
    ]


def growing(
    over: str, networks: Sequence[str], *, ways: Sequence[str] = (), batch_size: int, size_px: int
) -> list[Case]:
    """The same while one thing grows.

    Args:
        over: ``batch``, by powers of two up to ``batch_size``; ``resolution``, from ``size_px`` up to 1024;
            or ``kernel``, the size of VAN's large kernel attention.
        networks: their names.
        ways: their names; none is ``van`` and ``reference`` for a VAN and ``eager`` for the others.
        batch_size, size_px: of the cases, where they do not grow.

    Raises:
        UsageError: as ``side_by_side``; or a network has no kernel to grow.
    """
    cases = []
    for name in _known(networks):
        if over == "kernel" and not NETWORKS[name].is_van:
            raise UsageError(f"--grow kernel: {name} has no large kernel attention; wanted van_b0 to van_b6")
        chosen = _chosen(name, ways, usual=_IN_PYTORCH)
        for pictures, size, kernel in _steps(over, batch_size=batch_size, size_px=size_px):
            cases += [
                Case(network=name, way=way, batch_size=pictures, size_px=size, kernel_size=kernel) for way in chosen
            ]
    return cases


def _steps(over: str, *, batch_size: int, size_px: int) -> list[tuple[int, int, int | None]]:
    """Batch size, picture size and kernel size of each step."""
    if over == "batch":
        powers = [2**power for power in range(batch_size.bit_length())]
        return [(pictures, size_px, None) for pictures in dict.fromkeys([*powers, batch_size])]
    if over == "resolution":
        return [(batch_size, size, None) for size in (size_px, *(px for px in RESOLUTIONS_PX if px > size_px))]
    return [(batch_size, size_px, kernel) for kernel in KERNEL_SIZES]


def _known(networks: Sequence[str]) -> list[str]:
    for name in networks:
        if name not in NETWORKS:
            raise UsageError(f"--models: there is no {name!r} to measure; known: {', '.join(NETWORKS)}")
    return list(dict.fromkeys(networks))


def _chosen(name: str, ways: Sequence[str], *, usual: Sequence[str]) -> list[str]:
    for way in ways:
        if way not in WAYS:
            raise UsageError(f"--ways: there is no {way!r}; known: {', '.join(WAYS)}")
    lead_there = ways_of(NETWORKS[name])
    chosen = [way for way in dict.fromkeys(ways or usual) if way in lead_there]
    if not chosen:
        raise UsageError(f"--ways: none of {', '.join(ways)} leads to {name}; wanted some of {', '.join(lead_there)}")
    return chosen
