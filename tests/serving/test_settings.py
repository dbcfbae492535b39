"""Settings of the server: each has one default, and an error names the flag as typed."""

import dataclasses

import pytest

from van.cli.arguments import parse
from van.cli.serve import COMMAND, ServeSettings
from van.errors import UsageError
from van.serving.settings import Limits, Settings


def parse_flags(*arguments: str) -> ServeSettings:
    return parse(COMMAND, ["m.safetensors", *arguments])


INVALID = {
    "--max-body-mb": ("0", "at least 0.001"),
    "--max-megapixels": ("1e-09", "at least 0.001"),
    "--max-memory-mb": ("nan", "at least 0.001"),
    "--max-queue": ("0", "at least 1"),
    "--max-images": ("-3", "at least 1"),
    "--max-requests": ("0", "at least 1"),
    "--max-connections": ("0", "at least 1"),
    "--header-timeout-s": ("inf", "finite"),
    "--body-timeout-s": ("0", "more than 0"),
    "--timeout-s": ("nan", "more than 0"),
    "--threads": ("-1", "at least 0"),
    "--max-batch": ("-1", "at least 0"),
    "--max-wait-ms": ("-0.5", "at least 0"),
    "--shutdown-timeout-s": ("inf", "finite"),
    "--reload-interval-s": ("-1", "at least 0"),
}


@pytest.mark.parametrize("flag", INVALID)
def test_an_invalid_flag_is_named_as_typed(flag):
    value, expected = INVALID[flag]
    with pytest.raises(UsageError) as error:
        parse_flags(flag, value)
    assert str(error.value).startswith(f"{flag}: ")
    assert expected in str(error.value)
    assert str(error.value).endswith(f"got {value}")


def test_flags_have_the_defaults_of_the_settings_and_limits():
    flags, settings, limits = parse_flags(), Settings(), Limits()
    same = ("host", "port", "workers", "threads", "device", "max_batch", "shutdown_timeout_s", "reload_interval_s")
    assert [getattr(flags, name) for name in same] == [getattr(settings, name) for name in same]
    assert flags.max_wait_ms == 1000 * settings.max_wait_s
    assert (flags.max_body_mb, flags.max_memory_mb) == (limits.max_body_bytes / 2**20, limits.max_memory_bytes / 2**20)
    assert flags.max_megapixels == limits.max_pixels / 1e6
    for name in ("max_queue", "max_images", "max_requests", "max_connections"):
        assert getattr(flags, name) == getattr(limits, name)
    for name in ("header_timeout_s", "body_timeout_s", "timeout_s"):
        assert getattr(flags, name) == getattr(limits, name)
    assert limits.body_idle_timeout_s == limits.body_timeout_s / 3  # as the help of --body-timeout-s states


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
def test_a_limit_of_zero_is_rejected(name):
    with pytest.raises(UsageError, match=f"^{name}:.*got 0$"):
        Limits(**{name: 0})
