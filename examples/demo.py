"""Train a VAN on handwritten digits, evaluate it, classify single images, explain predictions, and write a report.

    python examples/demo.py [FOLDER]

Each step prints the van command that it runs; all run in one process, so that torch is imported once.
The results are written to FOLDER (default: runs/demo), which is deleted first.
"""

import json
import shutil
import sys
from pathlib import Path

from PIL import Image

from van.cli.main import main
from van.visualization.image_grid import draw_image_grid

EXPECTED_TOP1 = 0.985


def run_step(title: str, *arguments: str) -> None:
    """Print the title and the command, run the command, and exit if it fails."""
    print(f"\n== {title}\n$ van {' '.join(arguments)}", flush=True)
    status = main(arguments)
    if status:
        sys.exit(status)


def run_demo(folder: Path) -> None:
    """Write the digits, train, evaluate, predict, explain and report."""
    shutil.rmtree(folder, ignore_errors=True)
    digits, run, drawings = folder / "digits", folder / "run", folder / "predictions"
    run_step("write 1,797 handwritten digits as image files", "data", "digits", "--out", str(digits))
    run_step("train a VAN-B0 on 1,433 of them", "train", "digits", "--out", str(run))
    checkpoint = str(run / "best.safetensors")
    confusion = str(run / "confusion.png")
    run_step("evaluate on the other 364", "eval", checkpoint, "--data", str(digits), "--confusion", confusion)
    images = [str(min((digits / "val" / str(digit)).glob("*.png"))) for digit in range(10)]
    run_step("classify ten images", "predict", checkpoint, *images, "--top", "3", "--draw", str(drawings))
    draw_image_grid(
        (Image.open(path) for path in sorted(drawings.glob("*.png"))), folder / "predictions.png", columns=5
    )
    run_step("explain the predictions", "explain", checkpoint, *images, "--out", str(folder / "explanations"))
    run_step("write a report", "report", str(run), "--out", str(folder / "report.html"))
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    top1 = [record["top1"] for record in log if record["kind"] == "eval"]
    print(f"\nvalidation top-1 accuracy: {top1[-1]:.2%} after the last epoch, {max(top1):.2%} at best")
    print(f"images: {folder / 'predictions.png'}, {folder / 'explanations' / 'sheet.png'}, {run / 'curves.png'}")
    print(f"report: {folder / 'report.html'}")
    if max(top1) < EXPECTED_TOP1:
        sys.exit(f"top-1 accuracy: expected at least {EXPECTED_TOP1:.1%}, got {max(top1):.2%}; please open an issue")


if __name__ == "__main__":
    run_demo(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
