"""The documentation site builds strictly and offline, its links lead somewhere, and generated pages are up to date."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("docs", "src", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "zensical.toml")


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    for name in SOURCES:
        source, copy = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def test_every_link_and_every_loaded_file_of_the_site_exists(site):
    assert script("check_links")["check_site"](site) == []


def test_links_of_the_readme_exist():
    paths = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    assert script("check_links")["check_markdown"](paths) == []


def test_a_broken_link_a_missing_id_and_a_foreign_script_are_found(tmp_path):
    """The negative control of the link checker."""
    (tmp_path / "a.html").write_text(
        '<a href="gone.html"></a><a href="b.html#nowhere"></a><a href="b.html#here"></a>'
        '<script src="https://example.com/x.js"></script><a href="https://example.com"></a>'
    )
    (tmp_path / "b.html").write_text('<p id="here"></p>')
    problems = script("check_links")["check_site"](tmp_path)
    assert len(problems) == 3
    assert all(name in problem for name, problem in zip(("gone.html", "nowhere", "x.js"), problems, strict=True))


def test_the_site_has_a_page_for_each_topic_and_every_public_name(site):
    import van

    for page in ("installation", "quickstart", "object-detection", "semantic-segmentation", "cli", "changelog"):
        assert (site / f"{page}.html").is_file()
    reference = "".join(path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html"))
    for name in sorted(set(van.__all__) - {"__version__"}):
        assert re.search(rf'id="van\.[a-z_.]*\b{name}"', reference), name


def test_the_architecture_diagram_is_that_of_the_import_graph():
    drawn = script("architecture_diagram")["draw"]()
    assert (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8") == drawn


def test_the_cli_reference_is_that_of_the_command():
    text = script("cli_reference")["reference"]()
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == text
