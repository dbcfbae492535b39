"""Selection of benchmark cases: a comparison of networks, or a sweep over batch, image or kernel size."""

from collections.abc import Sequence
from typing import Any

from van.bench.backends import BACKENDS, supported_backends
from van.bench.networks import NETWORKS
from van.bench.rows import Case
from van.errors import UsageError

RESOLUTIONS_PX = (224, 320, 448, 640, 832, 1024)
KERNEL_SIZES = (7, 14, 21, 28, 35, 53)
"""Kernel sizes of large kernel attention, in pixels: the four of the paper, and two larger ones."""
_DEFAULT_VAN_BACKENDS = ("van", "reference", "compile", "onnxruntime", "openvino")
_DEFAULT_SWEEP_BACKENDS = ("van", "reference", "eager")


def select_cases(
    networks: Sequence[str], *, backends: Sequence[str], batch_size: int, image_size: int, sweep: str | None
) -> list[Case]:
    """Return the cases of ``van bench models``: a comparison, or a sweep over one parameter.

    Args:
        networks: names of networks; van_b0 to van_b2 and every peer if empty, van_b0 for a sweep.
        backends, batch_size, image_size, sweep: see ``comparison_cases`` and ``sweep_cases``; None is a comparison.

    Raises:
        UsageError: as ``comparison_cases`` and ``sweep_cases``.
    """
    sizes: dict[str, Any] = {"backends": backends, "batch_size": batch_size, "image_size": image_size}
    if sweep is not None:
        return sweep_cases(sweep, networks or ("van_b0",), **sizes)
    peers = [name for name, network in NETWORKS.items() if not network.is_van]
    return comparison_cases(networks or ("van_b0", "van_b1", "van_b2", *peers), **sizes)


def comparison_cases(
    networks: Sequence[str], *, backends: Sequence[str] = (), batch_size: int, image_size: int
) -> list[Case]:
    """Return every network on every selected backend that supports it.

    Args:
        networks: names of networks.
        backends: names of backends; by default all but ``van_compile`` for a VAN, and ``eager`` for peers.
        batch_size, image_size: of every case, in images and pixels.

    Raises:
        UsageError: a network or backend is unknown, or no selected backend supports a network.
    """
    return [
        Case(network=name, backend=backend, batch_size=batch_size, image_size=image_size)
        for name in _check_networks(networks)
        for backend in _select_backends(
            name, backends, default=_DEFAULT_VAN_BACKENDS if NETWORKS[name].is_van else ("eager",)
        )
    ]


def sweep_cases(
    sweep: str, networks: Sequence[str], *, backends: Sequence[str] = (), batch_size: int, image_size: int
) -> list[Case]:
    """Return the cases of a sweep over one parameter.

    Args:
        sweep: ``batch``, by powers of two up to ``batch_size``; ``resolution``, from ``image_size`` up to 1024
            pixels; or ``kernel``, the size of VAN's large kernel attention.
        networks: names of networks.
        backends: names of backends; by default ``van`` and ``reference`` for a VAN, and ``eager`` for peers.
        batch_size, image_size: of the cases, unless swept, in images and pixels.

    Raises:
        UsageError: as ``comparison_cases``; or a kernel sweep of a network without large kernel attention.
    """
    cases = []
    for name in _check_networks(networks):
        if sweep == "kernel" and not NETWORKS[name].is_van:
            raise UsageError(f"--sweep kernel: expected networks with large kernel attention (VANs), got {name!r}")
        selected = _select_backends(name, backends, default=_DEFAULT_SWEEP_BACKENDS)
        for images, size, kernel in _sweep_steps(sweep, batch_size=batch_size, image_size=image_size):
            cases += [
                Case(network=name, backend=backend, batch_size=images, image_size=size, kernel_size=kernel)
                for backend in selected
            ]
    return cases


def _sweep_steps(sweep: str, *, batch_size: int, image_size: int) -> list[tuple[int, int, int | None]]:
    """Return the batch size, image size and kernel size of each step."""
    if sweep == "batch":
        powers = [2**power for power in range(batch_size.bit_length())]
        return [(images, image_size, None) for images in dict.fromkeys([*powers, batch_size])]
    if sweep == "resolution":
        return [(batch_size, size, None) for size in (image_size, *(px for px in RESOLUTIONS_PX if px > image_size))]
    return [(batch_size, image_size, kernel) for kernel in KERNEL_SIZES]


def _check_networks(networks: Sequence[str]) -> list[str]:
    for name in networks:
        if name not in NETWORKS:
            raise UsageError(f"--models: expected names among {', '.join(NETWORKS)}, got {name!r}")
    return list(dict.fromkeys(networks))


def _select_backends(name: str, backends: Sequence[str], *, default: Sequence[str]) -> list[str]:
    for backend in backends:
        if backend not in BACKENDS:
            raise UsageError(f"--backends: expected names among {', '.join(BACKENDS)}, got {backend!r}")
    supported = supported_backends(NETWORKS[name])
    selected = [backend for backend in dict.fromkeys(backends or default) if backend in supported]
    if not selected:
        raise UsageError(
            f"--backends: expected at least one of {', '.join(supported)} for {name}, got {', '.join(backends)}"
        )
    return selected
