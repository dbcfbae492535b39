"""Check the links of the built site and of the Markdown files: ``python scripts/check_links.py SITE``.

Every relative link must lead to a file, and every fragment to an element of that file. Nothing may be loaded from
another host (scripts, styles, fonts, images), so that the site works offline. Links to other hosts are not opened.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
LOADING = {"img": "src", "script": "src", "link": "href", "source": "src", "iframe": "src"}
_NOT_LOADED = {"canonical", "prev", "next", "alternate"}


class _Page(HTMLParser):
    """Collects the ids and the links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if values.get(name)}
        loads = tag in LOADING and not _NOT_LOADED & set(values.get("rel", "").split())
        target = values.get(LOADING.get(tag, "href"), "")
        if target:
            self.links.append(("load" if loads else "link", target))


def check_site(site: Path) -> list[str]:
    """Return one line for each broken link, missing fragment and resource from another host."""
    pages = {path.resolve(): _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    problems = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve()).as_posix()
        for kind, target in page.links:
            parts = urlsplit(target)
            if parts.scheme in ("http", "https") or parts.netloc:
                if kind == "load":
                    problems.append(f"{name}: loads {target} from another host")
                continue
            if parts.scheme or name == "404.html":  # mailto:, data:, javascript:; 404 has absolute links
                continue
            other = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            other = other / "index.html" if other.is_dir() else other
            if not other.is_file() or not other.is_relative_to(site.resolve()):
                problems.append(f"{name}: {target} does not exist")
            elif parts.fragment and other in pages and unquote(parts.fragment) not in pages[other].ids:
                problems.append(f"{name}: {target} has no element with that id")
    return problems


def check_markdown(paths: list[Path]) -> list[str]:
    """Return one line for each relative link of Markdown files that leads to no file."""
    problems = []
    for path in paths:
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            parts = urlsplit(target)
            if not parts.scheme and parts.path and not (path.parent / unquote(parts.path)).exists():
                problems.append(f"{path.name}: {target} does not exist")
    return problems


def main(site: Path) -> int:
    """Print every problem; return the exit status."""
    problems = check_site(site) + check_markdown(
        [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    )
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(list(site.rglob('*.html')))} pages, {len(problems)} broken links")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
