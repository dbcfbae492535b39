"""Make the figures of docs/explain.md again: run the page's commands, keep what they draw in docs/pictures.

    python examples/gallery.py [FOLDER]

FOLDER (runs/gallery) keeps the runs, so that only what is missing is trained; everything takes some 20 minutes on two
cores. Commands that need public weights are left out; the report is photographed by Chromium.
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
PAGE = ROOT / "docs" / "explain.md"
FIGURES = {
    "things/sheet.png": "explain-things.webp",
    "figure/compare.png": "explain-compare.webp",
    "lka/val-000001-lka.png": "explain-lka.webp",
    "fields/fields.png": "explain-fields.webp",
    "fields/sides.png": "explain-sides.webp",
    "single-why/sheet.png": "explain-single.webp",
    "scores/single-curves.png": "explain-scores.webp",
    "report.png": "report.webp",
}
"""What the commands draw, and what the page calls it."""
LARGEST_PX = 1400
NEEDS_MORE = "# needs the weights"
"""What ends commands that cannot run without a download."""


def gallery(folder: Path) -> None:
    """Run the commands in ``folder``, then copy the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.S | re.M)
    for line in "".join(blocks).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["van"] or line.endswith(NEEDS_MORE) or _is_there(words):
            continue
        print(f"$ {line}", flush=True)
        if status := main(words[1:]):
            sys.exit(status)
    _photograph("report.html")
    for made, name in FIGURES.items():
        with Image.open(made) as file:
            picture = file.convert("RGB")
        picture.thumbnail((LARGEST_PX, LARGEST_PX))
        picture.save(ROOT / "docs" / "pictures" / name, quality=85, method=6)


def _photograph(page: str) -> None:
    """The upper part of the report, as a browser shows it."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        view = browser.new_page(viewport={"width": 1200, "height": 1500}, offline=True)
        view.goto(Path(page).resolve().as_uri())
        view.screenshot(path="report.png")
        browser.close()


def _is_there(words: list[str]) -> bool:
    """Whether an earlier call has trained or written that already."""
    out = Path(words[words.index("--out") + 1]) if "--out" in words else None
    if words[1] == "train":
        return out is not None and (out / "best.safetensors").exists()
    return words[1] == "data" and out is not None and out.exists()


if __name__ == "__main__":
    gallery(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/gallery"))
