"""Watch a VAN learn real handwritten digits, read single ones from picture files, and show where it looked.

    python examples/demo.py [FOLDER]

Each step is a command you can repeat; they run in this one process only to save the import of torch.
Everything lands in FOLDER (runs/demo), which is made anew.
"""

import json
import shutil
import sys
from pathlib import Path

from PIL import Image

from van.cli.main import main
from van.results.sheets import draw_contact_sheet

WANTED_TOP1 = 0.985


def step(title: str, *arguments: str) -> None:
    """Say what is done and by which command, and do it; a failure ends the demo."""
    print(f"\n== {title}\n$ van {' '.join(arguments)}", flush=True)
    status = main(arguments)
    if status:
        sys.exit(status)


def demo(folder: Path) -> None:
    """Write the digits, learn, measure, classify, draw."""
    shutil.rmtree(folder, ignore_errors=True)
    digits, run, drawn = folder / "digits", folder / "run", folder / "drawn"
    step("1,797 real handwritten digits as picture files", "data", "digits", "--out", str(digits))
    step("a VAN-B0 learns 1,433 of them", "train", "digits", "--out", str(run))
    network = str(run / "best.safetensors")
    step(
        "what it makes of the others", "eval", network, "--data", str(digits), "--confusion", str(run / "confusion.png")
    )
    pictures = [str(min((digits / "val" / str(digit)).glob("*.png"))) for digit in range(10)]
    step("single pictures from files", "predict", network, *pictures, "--top", "3", "--draw", str(drawn))
    draw_contact_sheet((Image.open(path) for path in sorted(drawn.glob("*.png"))), folder / "results.png", columns=5)
    step("where it looked", "explain", network, *pictures, "--out", str(folder / "why"))
    step("all of it on one page", "report", str(run), "--out", str(folder / "report.html"))
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    top1 = [record["top1"] for record in log if record["kind"] == "eval"]
    print(f"\nheld-out top-1: {top1[-1]:.2%} after the last epoch, {max(top1):.2%} at best")
    print(f"look at: {folder / 'results.png'}, {folder / 'why' / 'sheet.png'}, {run / 'curves.png'}")
    print(f"open:    {folder / 'report.html'}, the report of this run, in any browser")
    if max(top1) < WANTED_TOP1:
        sys.exit(f"that is less than the {WANTED_TOP1:.1%} this demo reaches elsewhere; please open an issue")


if __name__ == "__main__":
    demo(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
