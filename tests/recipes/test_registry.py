"""The registry of recipes: names, aliases and settings classes."""

import importlib

import pytest

from van.errors import UsageError
from van.recipes import ALIASES, RECIPES, recipe_name, resolve_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_its_settings_class_and_a_run_function(name):
    module = importlib.import_module(f"van.recipes.{RECIPES[name].module}")
    assert callable(module.run)
    assert recipe_name(getattr(module, RECIPES[name].settings)) == name
    assert resolve_recipe(name) == name


def test_finetune_is_an_alias_of_classify():
    assert resolve_recipe("finetune") == "classify"
    assert not set(ALIASES) & set(RECIPES)


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(UsageError, match=r"classify.*'clasify'"):
        resolve_recipe("clasify")
