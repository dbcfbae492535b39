"""What ``import van`` promises: few names, each documented, and nothing loaded before it is used."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import van

NAMES = [
    "LKA",
    "VAN",
    "Checkpoint",
    "Classes",
    "Explainer",
    "Predictor",
    "Preprocess",
    "VanError",
    "__version__",
    "large_kernel_attention",
    "load_checkpoint",
]
HEAVY = ("torch", "torchvision", "timm", "numpy", "PIL", "matplotlib", "safetensors", "tyro", "rich")


def test_the_public_names_are_these():
    """Adding one is a promise, taking one away breaks somebody: change this list and the changelog together."""
    assert van.__all__ == NAMES
    assert len(van.__all__) < 15
    assert dir(van) == sorted(NAMES)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"__version__"}))
def test_every_public_name_leads_to_something_documented(name):
    thing = getattr(van, name)
    assert thing.__name__ == name
    assert thing.__module__.startswith("van.")
    assert len(inspect.getdoc(thing) or "") > 20


def test_the_version_is_a_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", van.__version__)


def test_a_type_checker_sees_the_same_names_at_the_same_homes():
    """The imports under TYPE_CHECKING and the table that replaces them at run time say the same."""
    tree = ast.parse(Path(van.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == van._HOMES
    assert sorted([*seen, "__version__"]) == sorted(NAMES)


def test_importing_the_package_loads_none_of_what_it_is_built_on(run_python):
    code = "import sys, van; dir(van), van.__version__, van.VanError; print([n for n in {} if n in sys.modules])"
    assert run_python(code.format(HEAVY)).strip() == "[]"


def test_a_name_loads_only_what_it_needs(run_python):
    """The control of the test above: the same question finds torch once it is there, and still no timm."""
    names = "('torch', 'timm', 'matplotlib')"
    code = f"import sys, van; van.large_kernel_attention; print([n for n in {names} if n in sys.modules])"
    assert run_python(code).strip() == "['torch']"


def test_a_star_import_brings_every_public_name(run_python):
    code = "from van import *; import van; print(all(globals()[n] is getattr(van, n) for n in van.__all__))"
    assert run_python(code).strip() == "True"


def test_what_explains_is_a_room_with_names_of_its_own(run_python):
    code = "import van; room = van.explain; print(all(getattr(room, n).__module__[:12] == 'van.explain.' for n in {}))"
    names = ["Explainer", "Explanation", "lka_gates", "lka_maps", "measure_fields", "score_maps", "find_layer"]
    assert run_python(code.format(names)).strip() == "True"


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"'van' has no attribute 'Predicter'; public names: LKA, VAN, Checkpoint"):
        van.Predicter  # noqa: B018
    assert not hasattr(van, "nothing")
