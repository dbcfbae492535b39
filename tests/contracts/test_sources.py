"""Source files are short, documented, named for what they contain, and name no package registry."""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PYTHON = [
    *SOURCES,
    *(path for folder in ("tests", "examples", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))),
]
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


def trees() -> list[tuple[str, ast.Module]]:
    return [(short(path), ast.parse(path.read_text(encoding="utf-8"))) for path in SOURCES]


def test_files_have_at_most_500_lines():
    lengths = {short(path): len(path.read_text(encoding="utf-8").splitlines()) for path in PYTHON}
    assert {name: lines for name, lines in lengths.items() if lines > 500} == {}


def test_every_module_has_a_docstring_and_a_name_that_says_what_it_holds():
    assert [name for name, tree in trees() if not ast.get_docstring(tree)] == []
    assert [name for name, _ in trees() if set(Path(name).with_suffix("").parts) & JUNK_DRAWERS] == []


def test_functions_have_at_most_80_lines():
    lengths = {
        f"{name}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > 80} == {}
