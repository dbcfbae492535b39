"""Imports go down only, by the layers in pyproject.toml; a negative control checks the checker."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from van.tasks.registry import TASKS

ROOT = Path(__file__).parents[2]


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(cache_dir=None))"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root / 'src')!r}); {code}"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=250)


def test_imports_only_go_down():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("errors.py", "import van.images"),
        ("predict.py", "import van.datasets.folder"),
        ("explain/cam.py", "import van.training.trainer"),
        ("tasks/classification.py", "import van.datasets.folder"),
        ("training/trainer.py", "import van.tasks.detection"),
        ("ops/cpu.py", "import rich"),
    ],
)
def test_an_import_that_goes_up_or_out_is_caught(tmp_path, module, line):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / "src" / "van" / module
    path.write_text(path.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BROKEN" in done.stdout


def test_no_file_of_training_names_a_task():
    """A new task adds files and does not change the trainer."""
    for path in sorted((ROOT / "src" / "van" / "training").glob("*.py")):
        text = path.read_text(encoding="utf-8").lower()
        assert [name for name in TASKS if name in text] == [], path
