"""``van design``: the best dilation of LKA for a kernel size, and its cost beside other convolutions."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from van.backbones.design import best_dilation, decompose
from van.cli.arguments import DISPLAY, INPUT, OUTPUT, Command, parse
from van.cli.verbs import VERBS
from van.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DesignSettings:
    """Flags of ``van design``."""

    kernel: int = 21
    """Kernel size of the convolution to decompose, in pixels."""
    channels: int = 64
    """Number of channels of the feature map."""
    size: int = 56
    """Side of the square feature map, in pixels."""
    plot: Path | None = None
    """Write a chart of the parameter count over the kernel size to this PNG file."""
    json: bool = False
    """Print JSON instead of a table."""


COMMAND = Command(
    "design",
    DesignSettings,
    summary=VERBS["design"],
    details="A K x K convolution is decomposed into a depth-wise, a dilated depth-wise and a 1 x 1 convolution; biases "
    "are not counted.",
    examples=(
        "van design --kernel 21",
        "van design --kernel 35 --channels 128 --size 28 --plot design.png",
        "van design --kernel 53 --json",
    ),
    groups={INPUT: ("kernel", "channels", "size"), OUTPUT: ("plot",), DISPLAY: ("json",)},
)


def run(arguments: Sequence[str]) -> int:
    """Print the decomposition, its cost, and neighboring dilations."""
    settings = parse(COMMAND, arguments)
    for name, most in (("kernel", 10_000), ("channels", 1_000_000), ("size", 1_000_000)):
        if not 1 <= getattr(settings, name) <= most:
            raise UsageError(f"--{name}: expected 1 to {most:,}, got {getattr(settings, name)}")
    if settings.plot is not None and settings.plot.suffix.lower() != ".png":
        raise UsageError(f"--plot: expected a file name ending in .png, got {settings.plot}")
    plan = decompose(settings.kernel, channels=settings.channels, feature_size=settings.size)
    if settings.json:
        record = dataclasses.asdict(plan) | {"local_size": plan.local_size, "dilated_size": plan.dilated_size}
        print(
            json.dumps(
                record | {"receptive_field": plan.receptive_field, "parameters": plan.parameters, "macs": plan.macs},
                indent=2,
            )
        )
    else:
        _print_table(settings)
    if settings.plot is not None:
        _draw(settings)
    return 0


def _print_table(settings: DesignSettings) -> None:
    plan = decompose(settings.kernel, channels=settings.channels, feature_size=settings.size)
    size = plan.feature_size
    print(f"{plan.kernel_size}x{plan.kernel_size} on {plan.channels} channels, {size}x{size} map")
    print(
        f"best dilation {plan.dilation}: depth-wise {plan.local_size}x{plan.local_size}, depth-wise "
        f"{plan.dilated_size}x{plan.dilated_size} dilated by {plan.dilation}, 1x1; "
        f"receptive field {plan.receptive_field}x{plan.receptive_field}\n"
    )
    print(f"{'':<22}{'parameters':>14}{'MACs':>20}{'vs. LKA':>9}")
    titles = {"standard": "standard convolution", "mobilenet": "MobileNet", "lka": "LKA"}
    for name, title in titles.items():
        ratio = plan.parameters[name] / plan.parameters["lka"]
        print(f"{title:<22}{plan.parameters[name]:>14,}{plan.macs[name]:>20,}{ratio:>8.1f}x")
    print("\nneighboring dilations")
    for dilation in range(max(1, plan.dilation - 2), min(plan.kernel_size, plan.dilation + 2) + 1):
        other = decompose(settings.kernel, dilation=dilation, channels=settings.channels, feature_size=settings.size)
        best = "  <- best" if dilation == plan.dilation else ""
        kernels = f"{other.local_size}x{other.local_size} + {other.dilated_size}x{other.dilated_size}"
        print(f"  d={dilation}: {kernels:<16}{other.parameters['lka']:>14,} parameters{best}")


def _draw(settings: DesignSettings) -> None:
    from van.checkpoint import atomic_path
    from van.visualization.charts import draw_parameter_counts

    largest = max(42, settings.kernel + 8)
    sizes = list(range(3, largest, max(2, largest // 100)))
    plans = [
        decompose(k, dilation=best_dilation(k), channels=settings.channels, feature_size=settings.size) for k in sizes
    ]
    titles = {"standard": "standard convolution", "mobilenet": "MobileNet", "lka": "LKA, best dilation"}
    costs = {title: [plan.parameters[name] for plan in plans] for name, title in titles.items()}
    assert settings.plot is not None
    with atomic_path(settings.plot) as temporary:
        draw_parameter_counts(sizes, costs, temporary, highlight=settings.kernel)
    print(f"plot: {settings.plot}", file=sys.stderr)
