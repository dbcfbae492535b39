"""``van serve``: what is refused before anything is loaded, and what is told of a model that cannot be."""

import socket
import subprocess
import sys

import pytest

pytest.importorskip("uvicorn")


@pytest.fixture(autouse=True)
def without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAN_API_KEY", raising=False)


def test_an_address_that_others_reach_needs_a_key(van, checkpoint):
    ran = van("serve", checkpoint, "--host", "0.0.0.0")
    assert ran.status == 2
    assert "--host 0.0.0.0 can be reached by others; give --api-key-file or VAN_API_KEY" in ran.err


@pytest.mark.parametrize("text", ["short", "two words and enough letters", "", "ümläuts-and-enough-letters"])
def test_a_key_that_is_none_is_refused_and_not_shown(van, checkpoint, tmp_path, monkeypatch, text):
    file = tmp_path / "key.txt"
    file.write_text(text)
    ran = van("serve", checkpoint, "--api-key-file", file)
    assert ran.status == 2
    assert str(file) in ran.err
    assert not text or text not in ran.err
    if text and text.isascii():
        monkeypatch.setenv("VAN_API_KEY", text)
        assert "the key of VAN_API_KEY is none" in van("serve", checkpoint).err


def test_names_of_models_differ_and_are_names(van, checkpoint):
    assert "would both be served as" in van("serve", checkpoint, checkpoint).err
    assert "'a/b' is no name to serve" in van("serve", f"a/b={checkpoint}").err


def test_a_port_in_use_is_told(van, checkpoint):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = van("serve", checkpoint, "--port", port)
    assert ran.status == 2
    assert f"cannot listen at 127.0.0.1, port {port}" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"no network"])
def test_a_damaged_model_file_ends_the_service_with_one_line(tmp_path, content):
    file = tmp_path / "damaged.safetensors"
    file.write_bytes(content)
    command = [sys.executable, "-m", "van", "serve", str(file), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    *logged, told = done.stderr.splitlines()
    assert told.startswith("van: ")
    assert "damaged.safetensors" in told
    assert all(line.startswith("{") for line in logged)
