"""``van serve``: options that are rejected before a model is loaded, and the error of a model that cannot be loaded."""

import socket
import subprocess
import sys

import pytest

pytest.importorskip("uvicorn")


@pytest.fixture(autouse=True)
def without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAN_API_KEY", raising=False)


def test_a_host_that_other_machines_reach_needs_an_api_key(van, checkpoint):
    ran = van("serve", checkpoint, "--host", "0.0.0.0")
    assert ran.status == 2
    for named in ("--host 0.0.0.0", "--api-key-file", "VAN_API_KEY"):
        assert named in ran.err


@pytest.mark.parametrize("text", ["short", "two words and enough letters", "", "ümläuts-and-enough-letters"])
def test_an_invalid_key_is_rejected_and_not_printed(van, checkpoint, tmp_path, monkeypatch, text):
    file = tmp_path / "key.txt"
    file.write_text(text)
    ran = van("serve", checkpoint, "--api-key-file", file)
    assert ran.status == 2
    assert str(file) in ran.err
    assert not text or text not in ran.err
    if text and text.isascii():
        monkeypatch.setenv("VAN_API_KEY", text)
        rejected = van("serve", checkpoint).err
        assert "VAN_API_KEY" in rejected
        assert text not in rejected


def test_duplicate_and_invalid_model_names_are_rejected(van, checkpoint):
    assert str(checkpoint) in van("serve", checkpoint, checkpoint).err
    assert "'a/b'" in van("serve", f"a/b={checkpoint}").err


def test_a_port_in_use_is_reported(van, checkpoint):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = van("serve", checkpoint, "--port", port)
    assert ran.status == 2
    assert f"127.0.0.1, port {port}" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"no network"])
def test_a_damaged_model_file_ends_the_server_with_one_error_line(tmp_path, content):
    file = tmp_path / "damaged.safetensors"
    file.write_bytes(content)
    command = [sys.executable, "-m", "van", "serve", str(file), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    *log, message = done.stderr.splitlines()
    assert message.startswith("van: ")
    assert "damaged.safetensors" in message
    assert all(line.startswith("{") for line in log)
