"""What a service may be told: each thing has one default, and a refusal names what the user typed."""

import dataclasses

import pytest

from van.cli.arguments import parse
from van.cli.serve import ServeSettings
from van.errors import UsageError
from van.serve.settings import Limits, Settings


def flags(*words: str) -> ServeSettings:
    return parse(ServeSettings, ["m.safetensors", *words], verb="serve", description="", examples=())


REFUSED = {
    "--max-body-mb": ("0", "wanted at least 0.001"),
    "--max-megapixels": ("1e-09", "wanted at least 0.001"),
    "--max-memory-mb": ("nan", "wanted at least 0.001"),
    "--max-queue": ("0", "wanted at least 1"),
    "--max-pictures": ("-3", "wanted at least 1"),
    "--max-requests": ("0", "wanted at least 1"),
    "--max-connections": ("0", "wanted at least 1"),
    "--head-s": ("inf", "wanted more than 0, and finite"),
    "--body-s": ("0", "wanted more than 0"),
    "--timeout-s": ("nan", "wanted more than 0"),
    "--threads": ("-1", "wanted at least 0"),
    "--max-batch": ("-1", "wanted at least 0"),
    "--max-wait-ms": ("-0.5", "wanted at least 0"),
    "--grace-s": ("inf", "wanted at least 0, and finite"),
    "--watch-s": ("-1", "wanted at least 0"),
}


@pytest.mark.parametrize("flag", REFUSED)
def test_a_refused_flag_is_named_as_it_was_typed(flag):
    value, wanted = REFUSED[flag]
    with pytest.raises(UsageError) as refused:
        flags(flag, value)
    assert str(refused.value) == f"{flag} is {value}; {wanted}"


def test_flags_have_the_defaults_of_the_settings_and_limits():
    given, settings, limits = flags(), Settings(), Limits()
    same = ("host", "port", "workers", "threads", "device", "max_batch", "grace_s", "watch_s")
    assert [getattr(given, name) for name in same] == [getattr(settings, name) for name in same]
    assert given.max_wait_ms == 1000 * settings.max_wait_s
    assert (given.max_body_mb, given.max_memory_mb) == (limits.body_bytes / 2**20, limits.memory_bytes / 2**20)
    assert given.max_megapixels == limits.pixels / 1e6
    for flag, limit in (("max_queue", "queue"), ("max_pictures", "pictures"), ("max_requests", "requests")):
        assert getattr(given, flag) == getattr(limits, limit)
    for name in ("head_s", "body_s", "timeout_s"):
        assert getattr(given, name) == getattr(limits, name)
    assert limits.pause_s == limits.body_s / 3  # as the flag says of a body's pauses


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
def test_no_bound_can_be_nothing(name):
    with pytest.raises(UsageError, match=f"{name} is 0; wanted more than 0"):
        Limits(**{name: 0})
