"""Reproduce the images of docs/explainability.md: run the page's commands and copy their results to docs/images.

    python examples/gallery.py [FOLDER]

FOLDER (runs/gallery) keeps the runs, so that only missing ones are trained; all of it takes about 20 minutes on two CPU
cores. Commands that need public weights are skipped; the screenshot of the report is taken by Chromium.
"""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from PIL import Image

from van.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "explainability.md"
IMAGES = {
    "objects/sheet.png": "explain-objects.webp",
    "comparison/compare.png": "explain-compare.webp",
    "lka/val-000001-lka.png": "explain-lka.webp",
    "receptive-fields/receptive_fields.png": "explain-receptive-fields.webp",
    "receptive-fields/receptive_field_sizes.png": "explain-receptive-field-sizes.webp",
    "single-explanations/sheet.png": "explain-single.webp",
    "faithfulness/single-curves.png": "explain-faithfulness.webp",
    "report.png": "report.webp",
}
"""The files that the commands write, and their names in docs/images."""
MAX_SIZE_PX = 1400
NEEDS_DOWNLOAD = "# needs the weights"
"""The end of command lines that cannot run without a download."""


def gallery(folder: Path) -> None:
    """Run the commands in ``folder``, then copy the images."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.S | re.M)
    for line in "".join(blocks).splitlines():
        arguments = shlex.split(line, comments=True)
        if arguments[:1] != ["van"] or line.endswith(NEEDS_DOWNLOAD) or _is_done(arguments):
            continue
        print(f"$ {line}", flush=True)
        if status := main(arguments[1:]):
            sys.exit(status)
    _take_screenshot("report.html")
    for result, name in IMAGES.items():
        with Image.open(result) as file:
            image = file.convert("RGB")
        image.thumbnail((MAX_SIZE_PX, MAX_SIZE_PX))
        image.save(ROOT / "docs" / "images" / name, quality=85, method=6)


def _take_screenshot(page: str) -> None:
    """Write a screenshot of the upper part of the report."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page(viewport={"width": 1200, "height": 1500}, offline=True)
        view.goto(Path(page).resolve().as_uri())
        view.screenshot(path="report.png")
        browser.close()


def _is_done(arguments: list[str]) -> bool:
    """Return whether an earlier call has already trained or written the result."""
    out = Path(arguments[arguments.index("--out") + 1]) if "--out" in arguments else None
    if arguments[1] == "train":
        return out is not None and (out / "best.safetensors").exists()
    return arguments[1] == "data" and out is not None and out.exists()


if __name__ == "__main__":
    gallery(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/gallery"))
