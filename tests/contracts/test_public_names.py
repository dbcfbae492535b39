"""``import van``: few public names, each documented, and nothing imported before it is used."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import van

NAMES = [
    "LKA",
    "VAN",
    "CenterCropPreprocess",
    "Checkpoint",
    "Classification",
    "Detections",
    "Metrics",
    "Model",
    "Run",
    "Segmentation",
    "VanError",
    "__version__",
    "benchmark",
    "check_dataset",
    "convert",
    "evaluate",
    "explain",
    "export",
    "large_kernel_attention",
    "load_checkpoint",
    "predict",
    "report",
    "serve",
    "train",
]
CALLABLE_MODULES = ("explain", "export", "predict", "report")
HEAVY = ("torch", "torchvision", "timm", "numpy", "PIL", "matplotlib", "safetensors", "rich")


def test_the_public_names_are_these():
    """Removing a name breaks users: change this list and the changelog together."""
    assert van.__all__ == NAMES
    assert len(van.__all__) < 25
    assert dir(van) == sorted(NAMES)


def test_every_public_name_is_documented():
    for name in sorted(set(NAMES) - {"__version__"}):
        public = getattr(van, name)
        assert public.__name__ == (f"van.{name}" if name in CALLABLE_MODULES else name)
        assert len(inspect.getdoc(public) or "") > 20, name


def test_the_version_has_three_numbers():
    assert re.fullmatch(r"\d+\.\d+\.\d+", van.__version__)


def test_type_checkers_and_run_time_import_names_from_the_same_modules():
    """The imports under TYPE_CHECKING equal the table that replaces them at run time."""
    tree = ast.parse(Path(van.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == van._MODULES | dict.fromkeys(CALLABLE_MODULES, "van.api")
    assert sorted([*imported, "__version__"]) == sorted(NAMES)


def test_importing_the_package_imports_no_dependency(run_python):
    code = "import sys, van; dir(van), van.__version__, van.VanError; print([n for n in {} if n in sys.modules])"
    assert run_python(code.format(HEAVY)).strip() == "[]"


def test_a_name_imports_only_what_it_needs(run_python):
    """The control of the test above: torch is listed once it is imported, and timm is still not."""
    names = "('torch', 'timm', 'matplotlib')"
    code = f"import sys, van; van.large_kernel_attention; print([n for n in {names} if n in sys.modules])"
    assert run_python(code).strip() == "['torch']"


def test_a_star_import_has_every_public_name(run_python):
    code = "from van import *; import van; print(all(globals()[n] is getattr(van, n) for n in van.__all__))"
    assert run_python(code).strip() == "True"


def test_verbs_that_are_modules_can_be_called_before_and_after_their_submodules_are_imported(run_python):
    """Importing a submodule sets ``van.explain`` to the package, so the package itself is the function."""
    code = f"""
import van, inspect, sys
first = van.explain
import van.explain.explainer
from van.explain import Explainer
from van import api
assert van.explain is first is sys.modules["van.explain"]
for name in {CALLABLE_MODULES}:
    module = getattr(van, name)
    assert inspect.ismodule(module) and inspect.signature(module) == inspect.signature(getattr(api, name))
try:
    van.explain("van_b9", "a.png")
except van.VanError as error:
    print(error)
"""
    assert "van_b9" in run_python(code)


def test_an_unknown_name_is_an_attribute_error_with_the_public_names():
    with pytest.raises(AttributeError, match=r"Predicter.*LKA, VAN, CenterCropPreprocess, Checkpoint"):
        van.Predicter  # noqa: B018
    assert not hasattr(van, "nothing")
