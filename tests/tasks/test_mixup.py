"""The settings of label smoothing, mixup and cutmix."""

import pytest

from van.errors import UsageError
from van.tasks.mixup import MixupSettings


def test_invalid_settings_name_the_flag_and_the_value(subtests):
    for name, value in [
        ("label_smoothing", -0.1),
        ("label_smoothing", 1.0),
        ("label_smoothing", float("nan")),
        ("mixup", -1.0),
        ("mixup", float("nan")),
        ("cutmix", float("inf")),
    ]:
        with subtests.test(name=str(name)), pytest.raises(UsageError, match=f"--{name.replace('_', '-')}.*{value}"):
            MixupSettings(**{name: value})


def test_mixup_and_cutmix_are_off_by_default():
    assert (MixupSettings().mixup, MixupSettings().cutmix) == (0.0, 0.0)
