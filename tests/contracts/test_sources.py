"""How the files of this project look: short, named for what they hold, and naming no package registry."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PYTHON = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "examples").rglob("*.py"))]
JUNK_DRAWERS = {"utils", "util", "common", "helpers", "helper", "core", "misc", "shared", "tools", "stuff"}
DOT = "."
REGISTRIES = [
    f"{name}{DOT}{ending}"
    for name, ending in (
        ("pypi", "org"), ("pythonhosted", "org"), ("download.pytorch", "org"), ("anaconda", "org"),
        ("anaconda", "com"), ("npmjs", "org"), ("npmjs", "com"), ("docker", "io"), ("ghcr", "io"), ("quay", "io"),
        ("gcr", "io"), ("proxy.golang", "org"), ("crates", "io"),
    )
]  # fmt: skip


def ours() -> list[Path]:
    """Every file that git tracks or would track; without git, all but what starts with a dot."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    else:
        paths = [p for p in ROOT.rglob("*") if not any(part.startswith(".") for part in p.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file()]


def registries_in(text: str) -> list[str]:
    return [host for host in REGISTRIES if host in text]


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_file_names_a_package_registry():
    """Where packages come from is the business of whoever installs them."""
    files = ours()
    assert len(files) > 50
    found = {short(path): registries_in(path.read_text(encoding="utf-8", errors="replace")) for path in files}
    assert {name: hosts for name, hosts in found.items() if hosts} == {}
    assert registries_in(f"--index-url https://{REGISTRIES[0]}/simple") == [REGISTRIES[0]]


def test_the_lock_file_pins_by_hash_and_holds_no_address():
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in lock
    assert lock.count("==") > 50
    assert lock.count("--hash=sha256:") > lock.count("==")


@pytest.mark.parametrize("path", PYTHON, ids=short)
def test_a_file_is_short_enough_to_be_read(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_a_source_file_says_what_it_is_for_and_is_no_junk_drawer(path):
    names = set(path.relative_to(ROOT / "src").with_suffix("").parts)
    assert not names & JUNK_DRAWERS
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), "no docstring"


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_functions_are_under_60_lines(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: lines for name, lines in lengths.items() if lines >= 60} == {}
