"""The header comes back as it was, and the seal notices every change."""

import dataclasses
import json
from pathlib import Path

import pytest

from export.made import LABELS
from van.errors import CheckpointError, HashMismatch, TruncatedFile
from van.export.header import UNSEALED, Header, check_seal, open_sealed_json, seal, sealed_json
from van.preprocess import Preprocess, WholePreprocess

HEADER = Header(
    task="classify",
    model="van_b0",
    labels=LABELS,
    preprocess=Preprocess(size_px=96, mean=(0.1, 0.2, 0.3)),
    format="onnx",
    inputs={"pictures": (None, 3, 96, 96)},
    outputs=("logits",),
    precision="float16",
    dynamic=True,
    opset="ai.onnx 20",
    source="ab" * 32,
    model_options={"dims": [8, 16, 24, 32]},
    versions={"torch": "2"},
    notes=("a note",),
)


@pytest.mark.parametrize("rule", [HEADER.preprocess, WholePreprocess(short_px=64, long_px=99)])
def test_a_header_comes_back_equal_from_one_line_of_ascii(rule):
    header = dataclasses.replace(HEADER, preprocess=rule)
    text = header.to_json()
    assert text.isascii()
    assert "\n" not in text
    assert Header.from_json(text) == header


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"labels": "cat"}, "labels"),
        ({"dynamic": 1}, "dynamic"),
        ({"precision": "float8"}, "precision"),
        ({"version": 2}, "version 1"),
        ({"extra": 1}, "extra"),
        ({"preprocess": {"size_px": 32}}, "preprocess holds size_px"),
        ({"inputs": {"pictures": 3}}, "not iterable"),
    ],
)
def test_a_header_that_is_not_ours_is_refused_with_its_name_and_the_file(change, named):
    text = json.dumps({**json.loads(HEADER.to_json()), **change})
    with pytest.raises(CheckpointError, match=f"network.onnx: .*{named}"):
        Header.from_json(text, path="network.onnx")


@pytest.mark.parametrize("text", ["", "null", "[1]", "{", "[" * 100_000])
def test_text_that_is_no_header_is_refused(text):
    with pytest.raises(CheckpointError, match="its header is"):
        Header.from_json(text)


@pytest.fixture
def sealed(tmp_path) -> tuple[Path, Path]:
    path, other = tmp_path / "network.xml", tmp_path / "network.bin"
    path.write_bytes(b"before " + UNSEALED.encode() + b" after")
    other.write_bytes(b"weights")
    seal(path, other)
    return path, other


def test_a_sealed_file_is_accepted_and_every_single_changed_byte_is_refused(sealed):
    path, other = sealed
    check_seal(path, other)
    for each in (path, other):
        content = each.read_bytes()
        for place in range(len(content)):
            each.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(CheckpointError):
                check_seal(path, other)
        each.write_bytes(content)
    check_seal(path, other)


def test_what_is_cut_off_swapped_or_missing_is_refused(sealed):
    path, other = sealed
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            check_seal(path, other)
    path.write_bytes(b"")
    with pytest.raises(TruncatedFile, match="is empty"):
        check_seal(path, other)
    path.write_bytes(content)
    other.write_bytes(b"weights of another network")
    with pytest.raises(HashMismatch, match=r"network\.xml and network\.bin"):
        check_seal(path, other)
    other.unlink()
    with pytest.raises(CheckpointError, match=r"network\.bin: no such file; it belongs beside network\.xml"):
        check_seal(path, other)


def test_a_file_with_two_seals_is_refused_because_neither_is_meant(tmp_path):
    path = tmp_path / "twice"
    path.write_bytes(2 * UNSEALED.encode())
    with pytest.raises(CheckpointError, match="holds 2 seals of this package, wanted one"):
        seal(path)


def test_a_header_in_a_container_is_bound_to_the_parts_beside_it():
    parts = [("weights", b"abc"), ("graph", b"def")]
    text = sealed_json(HEADER, parts)
    assert open_sealed_json(text, parts, path="x") == HEADER
    for other in ([("weights", b"abd"), parts[1]], parts[::-1], parts[:1], [("weights", b"abcdef"), ("graph", b"")]):
        with pytest.raises(HashMismatch):
            open_sealed_json(text, other, path="x")
    with pytest.raises(HashMismatch):
        open_sealed_json(text.replace("one & two", "two & one"), parts, path="x")
    for damaged in ("", "[]", "{}", '{"header": 1}'):
        with pytest.raises(CheckpointError, match="x: its header is damaged"):
            open_sealed_json(damaged, parts, path="x")
