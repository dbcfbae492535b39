"""``van models``: list the variants of VAN, their cost and their public weights."""

import dataclasses
import json
from collections.abc import Sequence

from van.cli.arguments import DISPLAY, Command, parse
from van.cli.verbs import VERBS
from van.weights.published import LICENSE_NOTE, VARIANTS, Variant


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelsSettings:
    """Flags of ``van models``."""

    json: bool = False
    """Print JSON instead of a table."""


COMMAND = Command(
    "models",
    ModelsSettings,
    summary=VERBS["models"],
    examples=("van models", "van models --json", "van models --json | python -m json.tool"),
    groups={DISPLAY: ("json",)},
)


def run(arguments: Sequence[str]) -> int:
    """Print the table of variants."""
    settings = parse(COMMAND, arguments)
    if settings.json:
        print(json.dumps([_record(variant) for variant in VARIANTS.values()], indent=2))
        return 0
    print(f"{'model':<8}{'parameters':>13}{'GMACs':>9}{'top-1 %':>9}  public weights")
    for variant in VARIANTS.values():
        top1 = "" if variant.top1 is None else f"{variant.top1:.1f}"
        macs = variant.macs / 1e9
        print(f"{variant.name:<8}{variant.parameters:>13,}{macs:>9.3f}{top1:>9}  {variant.weights or 'none'}")
    print("\nTop-1 on ImageNet-1K at 224 x 224 as published (arXiv:2202.09741); GMACs of convolutions and linears.")
    print(LICENSE_NOTE)
    return 0


def _record(variant: Variant) -> dict[str, object]:
    return {
        "name": variant.name,
        "parameters": variant.parameters,
        "macs": variant.macs,
        "top1_published": None if variant.top1 is None else variant.top1 / 100,
        "weights": variant.weights,
        "pretrained": variant.hub_file is not None,
        "dims": variant.dims,
        "depths": variant.depths,
    }
