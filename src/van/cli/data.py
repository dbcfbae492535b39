"""``van data digits``: write the embedded digits out as picture files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from van.cli.arguments import parse
from van.errors import UsageError

SETS = {"digits": "1,797 handwritten digits, 8 x 8 pixels, as train/CLASS/*.png and val/CLASS/*.png"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Flags of ``van data digits``."""

    out: Path
    """A new folder."""


def run(arguments: Sequence[str]) -> int:
    """Choose the set and write it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        listed = "\n".join(f"  {name:<10}{text}" for name, text in SETS.items())
        print(f"usage: van data SET --out FOLDER\n\n{listed}\n\nExample:\n\n  van data digits --out digits")
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in SETS:
        raise UsageError(f"there is no set {name!r}; known: {', '.join(SETS)}; see van data --help")
    settings = parse(
        DataSettings, rest, verb=f"data {name}", description=SETS[name], examples=("van data digits --out digits",)
    )
    from van.data.digits import write_digits

    split = write_digits(settings.out)
    print(f"{settings.out}: {len(split.train)} pictures to learn from, {len(split.validation)} held out")
    return 0
