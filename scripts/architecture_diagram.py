"""Draw the packages of ``van`` and their imports as an SVG: ``python scripts/architecture_diagram.py OUT.svg``.

Layers come from the import-linter contract in pyproject.toml, imports from the import graph of the source (grimp), so
the diagram cannot differ from the code. Imports that follow from other imports are left out (transitive reduction).
"""

import sys
import tomllib
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
BOX_HEIGHT, ROW_STEP, MARGIN, WIDTH = 34, 74, 24, 960
PURPOSE = {
    "__main__": "python -m van",
    "cli": "one file per verb; van --help works without torch",
    "report": "one HTML page of a run",
    "serving": "HTTP server and its page",
    "bench": "benchmarks, each checked first",
    "recipes": "named training runs",
    "predict": "images in, predictions out",
    "explain": "CAM, LKA attention, receptive fields",
    "training": "one training loop for every task",
    "export": "a writer and a session per format",
    "tasks": "collate, loss, metric, decode",
    "datasets": "annotation formats, transforms, checks",
    "models": "VAN, heads, weights, fusion",
    "checkpoint": "our file: safetensors + header",
    "ops": "reference, C++ and Triton operators",
    "predictions": "Classification, Detections, Segmentation",
    "preprocess": "image to tensor, one rule per model",
    "visualization": "drawing and charts",
    "images": "file to upright RGB image",
    "registration": "van_b0 ... van_b6 in timm",
    "errors": "the error tree",
}


def layers() -> list[list[str]]:
    """Return the package names of each layer, top first, from the import-linter contract."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (contract,) = (contract for contract in contracts if contract["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]


def package_imports() -> dict[str, set[str]]:
    """Return which packages of ``van`` each package imports, directly."""
    graph = grimp.build_graph("van", cache_dir=None)
    found: dict[str, set[str]] = {}
    for module in graph.modules:
        package = module.split(".")[1] if "." in module else None
        for imported in graph.find_modules_directly_imported_by(module):
            other = imported.split(".")[1] if "." in imported else None
            if package and other and package != other:
                found.setdefault(package, set()).add(other)
    return found


def reduce(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Remove every import that a longer chain of imports implies."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        stack = list(imports.get(start, ()))
        while stack:
            name = stack.pop()
            if name not in seen:
                seen.add(name)
                stack += imports.get(name, ())
        return seen

    below = {name: reachable(name) for name in imports}
    return {
        name: {one for one in direct if not any(one in below.get(other, ()) for other in direct - {one})}
        for name, direct in imports.items()
    }


def draw() -> str:
    """Return the SVG."""
    rows = layers()
    names = {name for row in rows for name in row}
    edges = reduce({name: other & names for name, other in package_imports().items() if name in names})
    height = 2 * MARGIN + ROW_STEP * (len(rows) - 1) + BOX_HEIGHT
    places: dict[str, tuple[float, float, float]] = {}
    for number, row in enumerate(rows):
        column = (WIDTH - 2 * MARGIN) / len(row)
        box = min(column - 24, 300)
        for place, name in enumerate(row):
            places[name] = (MARGIN + column * (place + 0.5), MARGIN + ROW_STEP * number, box)
    lines = []
    for name, others in sorted(edges.items()):
        for other in sorted(others):
            x1, y1, _ = places[name]
            x2, y2, _ = places[other]
            start, end = y1 + BOX_HEIGHT, y2 - 3
            bend = max(20.0, (end - start) / 2)
            curve = f"C{x1:.0f},{start + bend:.0f} {x2:.0f},{end - bend:.0f} {x2:.0f},{end:.0f}"
            lines.append(f'<path d="M{x1:.0f},{start:.0f} {curve}"/>')
    boxes = []
    for name, (x, y, width) in places.items():
        left = x - width / 2
        boxes.append(
            f'<g><rect x="{left:.0f}" y="{y:.0f}" width="{width:.0f}" height="{BOX_HEIGHT}" rx="6"/>'
            f'<text x="{x:.0f}" y="{y + 14:.0f}" class="name">{escape(name)}</text>'
            f'<text x="{x:.0f}" y="{y + 27:.0f}" class="purpose">{escape(PURPOSE.get(name, ""))}</text></g>'
        )
    style = (
        "rect{fill:#eef3fb;stroke:#4a6fa5}text{font-family:Helvetica,Arial,sans-serif;text-anchor:middle;fill:#1d2b3f}"
        ".name{font-size:12px;font-weight:bold}.purpose{font-size:10px}"
        "path{fill:none;stroke:#8a97a8;stroke-width:1.2;marker-end:url(#a)}"
    )
    marker = (
        '<marker id="a" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0,0L8,4L0,8z" style="fill:#8a97a8;stroke:none"/></marker>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="Packages of van and their imports"><defs>{marker}<style>{style}</style></defs>'
        f'<rect width="{WIDTH}" height="{height}" style="fill:#fff;stroke:none"/>'
        f"{''.join(lines)}{''.join(boxes)}</svg>\n"
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw(), encoding="utf-8")
