"""``van design``: the best dilation for a kernel size, and what LKA saves."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from van.cli.arguments import parse
from van.errors import UsageError
from van.models.design import best_dilation, decompose


@dataclasses.dataclass(frozen=True, kw_only=True)
class DesignSettings:
    """Flags of ``van design``."""

    kernel: int = 21
    """Side of the convolution to split, in pixels."""
    channels: int = 64
    """Channels of the map."""
    size: int = 56
    """Side of the map, in pixels."""
    plot: Path | None = None
    """Draw the weights over the kernel size into this PNG."""
    json: bool = False
    """Print JSON instead of a table."""


def run(arguments: Sequence[str]) -> int:
    """Print the decomposition, every dilation considered, and the costs."""
    settings = parse(
        DesignSettings,
        arguments,
        verb="design",
        description="Split a K x K convolution into LKA's three and count what it costs, biases left out.",
        examples=("van design --kernel 21", "van design --kernel 35 --channels 128 --size 28 --plot design.png"),
    )
    for name, most in (("kernel", 10_000), ("channels", 1_000_000), ("size", 1_000_000)):
        if not 1 <= getattr(settings, name) <= most:
            raise UsageError(f"--{name} is {getattr(settings, name)}; wanted 1 to {most:,}")
    if settings.plot is not None and settings.plot.suffix.lower() != ".png":
        raise UsageError(f"--plot is {settings.plot}; wanted a name ending in .png")
    plan = decompose(settings.kernel, channels=settings.channels, size_px=settings.size)
    if settings.json:
        record = dataclasses.asdict(plan) | {"local_size": plan.local_size, "dilated_size": plan.dilated_size}
        print(
            json.dumps(record | {"reach_px": plan.reach_px, "parameters": plan.parameters, "macs": plan.macs}, indent=2)
        )
    else:
        _print_table(settings)
    if settings.plot is not None:
        _draw(settings)
    return 0


def _print_table(settings: DesignSettings) -> None:
    plan = decompose(settings.kernel, channels=settings.channels, size_px=settings.size)
    print(f"{plan.kernel_size}x{plan.kernel_size} on {plan.channels} channels, {plan.size_px}x{plan.size_px} map")
    print(
        f"best dilation {plan.dilation}: depth-wise {plan.local_size}x{plan.local_size}, depth-wise "
        f"{plan.dilated_size}x{plan.dilated_size} dilated by {plan.dilation}, 1x1; "
        f"one pixel reads {plan.reach_px}x{plan.reach_px}\n"
    )
    print(f"{'':<22}{'weights':>14}{'MACs':>20}{'to LKA':>9}")
    titles = {"standard": "standard convolution", "mobilenet": "MobileNet split", "lka": "LKA"}
    for name, title in titles.items():
        ratio = plan.parameters[name] / plan.parameters["lka"]
        print(f"{title:<22}{plan.parameters[name]:>14,}{plan.macs[name]:>20,}{ratio:>8.1f}x")
    print("\nother dilations")
    for dilation in range(max(1, plan.dilation - 2), min(plan.kernel_size, plan.dilation + 2) + 1):
        other = decompose(settings.kernel, dilation=dilation, channels=settings.channels, size_px=settings.size)
        mark = "  <- best" if dilation == plan.dilation else ""
        kernels = f"{other.local_size}x{other.local_size} + {other.dilated_size}x{other.dilated_size}"
        print(f"  d={dilation}: {kernels:<16}{other.parameters['lka']:>14,} weights{mark}")


def _draw(settings: DesignSettings) -> None:
    from van.checkpoint import atomic_path
    from van.results.charts import draw_costs

    largest = max(42, settings.kernel + 8)
    sizes = list(range(3, largest, max(2, largest // 100)))
    plans = [decompose(k, dilation=best_dilation(k), channels=settings.channels, size_px=settings.size) for k in sizes]
    titles = {"standard": "standard convolution", "mobilenet": "MobileNet split", "lka": "LKA, best dilation"}
    costs = {title: [plan.parameters[name] for plan in plans] for name, title in titles.items()}
    assert settings.plot is not None
    with atomic_path(settings.plot) as temporary:
        draw_costs(sizes, costs, temporary, marked=settings.kernel)
    print(f"plot: {settings.plot}", file=sys.stderr)
