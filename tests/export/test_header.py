"""Headers survive a round trip, and the checksum detects every change."""

import dataclasses
import json
from pathlib import Path

import pytest

from export.networks import LABELS
from van.errors import CheckpointError, HashMismatch, TruncatedFile
from van.export.header import (
    CHECKSUM_PLACEHOLDER,
    Header,
    header_with_checksum,
    read_header_with_checksum,
    verify_checksum,
    write_checksum,
)
from van.preprocess import CenterCropPreprocess, ResizePreprocess

HEADER = Header(
    task="classify",
    model="van_b0",
    class_names=LABELS,
    preprocess=CenterCropPreprocess(image_size=96, mean=(0.1, 0.2, 0.3)),
    format="onnx",
    inputs={"images": (None, 3, 96, 96)},
    outputs=("logits",),
    precision="float16",
    dynamic=True,
    opset="ai.onnx 20",
    source="ab" * 32,
    model_options={"dims": [8, 16, 24, 32]},
    versions={"torch": "2"},
    notes=("a note",),
)


@pytest.mark.parametrize("rule", [HEADER.preprocess, ResizePreprocess(min_size=64, max_size=99)])
def test_a_header_survives_a_round_trip_through_one_line_of_ascii(rule):
    header = dataclasses.replace(HEADER, preprocess=rule)
    text = header.to_json()
    assert text.isascii()
    assert "\n" not in text
    assert Header.from_json(text) == header


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"class_names": "cat"}, "class_names"),
        ({"dynamic": 1}, "dynamic"),
        ({"precision": "float8"}, "precision"),
        ({"version": 2}, "version 1"),
        ({"extra": 1}, "extra"),
        ({"preprocess": {"image_size": 32}}, "image_size"),
        ({"inputs": {"images": 3}}, "not iterable"),
    ],
)
def test_an_invalid_header_is_rejected_with_the_field_and_the_file(change, fact):
    text = json.dumps({**json.loads(HEADER.to_json()), **change})
    with pytest.raises(CheckpointError, match=f"network.onnx: .*{fact}"):
        Header.from_json(text, path="network.onnx")


@pytest.mark.parametrize("text", ["", "null", "[1]", "{", "[" * 100_000])
def test_text_that_is_no_header_is_rejected(text):
    with pytest.raises(CheckpointError, match="header"):
        Header.from_json(text)


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    path, other = tmp_path / "network.xml", tmp_path / "network.bin"
    path.write_bytes(b"before " + CHECKSUM_PLACEHOLDER.encode() + b" after")
    other.write_bytes(b"weights")
    write_checksum(path, other)
    return path, other


def test_an_unchanged_file_is_accepted_and_every_single_changed_byte_is_rejected(files):
    path, other = files
    verify_checksum(path, other)
    for file in (path, other):
        content = file.read_bytes()
        for offset in range(len(content)):
            file.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
            with pytest.raises(CheckpointError):
                verify_checksum(path, other)
        file.write_bytes(content)
    verify_checksum(path, other)


def test_truncated_swapped_and_missing_files_are_rejected(files):
    path, other = files
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            verify_checksum(path, other)
    path.write_bytes(b"")
    with pytest.raises(TruncatedFile, match=r"network\.xml"):
        verify_checksum(path, other)
    path.write_bytes(content)
    other.write_bytes(b"weights of another network")
    with pytest.raises(HashMismatch, match=r"network\.xml and network\.bin"):
        verify_checksum(path, other)
    other.unlink()
    with pytest.raises(CheckpointError, match=r"network\.bin: .*network\.xml"):
        verify_checksum(path, other)


def test_a_file_with_two_checksums_is_rejected_as_ambiguous(tmp_path):
    path = tmp_path / "twice"
    path.write_bytes(2 * CHECKSUM_PLACEHOLDER.encode())
    with pytest.raises(CheckpointError, match=r"twice.*1.*2"):
        write_checksum(path)


def test_a_header_in_a_container_is_bound_to_the_other_entries():
    entries = [("weights", b"abc"), ("graph", b"def")]
    text = header_with_checksum(HEADER, entries)
    assert read_header_with_checksum(text, entries, path="x") == HEADER
    for other in (
        [("weights", b"abd"), entries[1]],
        entries[::-1],
        entries[:1],
        [("weights", b"abcdef"), ("graph", b"")],
    ):
        with pytest.raises(HashMismatch):
            read_header_with_checksum(text, other, path="x")
    with pytest.raises(HashMismatch):
        read_header_with_checksum(text.replace("one & two", "two & one"), entries, path="x")
    for damaged in ("", "[]", "{}", '{"header": 1}'):
        with pytest.raises(CheckpointError, match=r"x: .*header"):
            read_header_with_checksum(damaged, entries, path="x")
