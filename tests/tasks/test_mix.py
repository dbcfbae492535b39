"""Settings of label and picture blending."""

import pytest

from van.errors import UsageError
from van.tasks.mix import MixSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label_smoothing", -0.1),
        ("label_smoothing", 1.0),
        ("label_smoothing", float("nan")),
        ("mixup", -1.0),
        ("mixup", float("nan")),
        ("cutmix", float("inf")),
    ],
)
def test_a_setting_that_means_nothing_is_named_by_its_flag(name, value):
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} is {value}; wanted"):
        MixSettings(**{name: value})


def test_the_defaults_blend_no_pictures():
    assert (MixSettings().mixup, MixSettings().cutmix) == (0.0, 0.0)
