import argparse
import collections
import datetime
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from van.errors import CheckpointError, HashMismatch, TruncatedFile, UnknownFormat, UnsafePickle
from van.weights.tensor_files import check_hash, read_tensors

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2), "n": torch.tensor(7)}


class CreatesFile:
    """An object whose pickle creates ``path`` when it is loaded without restrictions."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class Settings:
    """A class of a training script."""


def save_safetensors(content: dict, path: Path) -> None:
    safetensors.torch.save_file(content, path, {"made": "here"})


def save_legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


KINDS = {
    "safetensors": save_safetensors,
    "zip": torch.save,
    "legacy": save_legacy,
    "zip with Namespace": lambda t, path: torch.save({"state_dict": t, "args": argparse.Namespace(lr=0.1)}, path),
    "legacy with Namespace": lambda t, path: save_legacy({"state_dict": t, "args": argparse.Namespace(lr=0.1)}, path),
}


def assert_equal(actual: dict, expected: dict) -> None:
    assert list(actual) == list(expected)
    assert all(actual[name].equal(expected[name]) for name in expected)


def test_the_format_is_detected_from_the_content_and_not_from_the_name(subtests, tmp_path_factory):
    for kind in KINDS:
        for suffix in [".pth", ".pth.tar", ".bin", ".safetensors", ".dat", ""]:
            with subtests.test(kind=str(kind), suffix=str(suffix)):
                tmp_path = tmp_path_factory.mktemp("case")
                path = tmp_path / f"file{suffix}"
                KINDS[kind](TENSORS, path)
                tensors, header = read_tensors(path)
                assert_equal(dict(sorted(tensors.items())), dict(sorted(TENSORS.items())))
                assert header.get("made") == ("here" if kind == "safetensors" else None)


def test_tensors_are_read_from_every_container(subtests, tmp_path_factory):
    for container in ["state_dict", "model", "state_dict_ema", "model_ema", None]:
        with subtests.test(container=str(container)):
            tmp_path = tmp_path_factory.mktemp("case")
            path = tmp_path / "file.pth"
            content = (
                collections.OrderedDict(TENSORS) if container is None else {"epoch": 3, container: TENSORS, "best": 0.7}
            )
            torch.save(content, path)
            assert_equal(read_tensors(path)[0], TENSORS)


def test_ema_weights_are_preferred_to_plain_ones(tmp_path):
    plain = {name: tensor + 1 for name, tensor in TENSORS.items()}
    torch.save({"state_dict": plain, "state_dict_ema": TENSORS}, tmp_path / "file.pth")
    assert_equal(read_tensors(tmp_path / "file.pth")[0], TENSORS)


def test_plain_values_beside_the_tensors_are_skipped(tmp_path):
    torch.save({**TENSORS, "epoch": 3, "name": "x", "shape": [1, 2]}, tmp_path / "file.pth")
    assert_equal(read_tensors(tmp_path / "file.pth")[0], TENSORS)


def hostile(tmp_path: Path) -> dict[str, tuple[object, str]]:
    return {
        "a call": (CreatesFile(tmp_path / "ran"), "open"),
        "a class": (Settings(), "Settings"),
        "a whole network": (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        "a date": (datetime.datetime(2022, 5, 1), "datetime.datetime"),
        "a numpy number": (np.float64(3), "numpy"),
        "a path in a Namespace": (argparse.Namespace(out=Path("x")), "PosixPath"),
    }


def test_a_pickle_with_other_objects_is_refused_and_no_code_runs(subtests, tmp_path_factory):
    for name in hostile(Path()):
        for layout in ["zip", "legacy", "zip protocol 4", "plain 2", "plain 4", "plain 5"]:
            with subtests.test(name=str(name), layout=str(layout)):
                tmp_path = tmp_path_factory.mktemp("case")
                content, global_name = hostile(tmp_path)[name]
                path, whole = tmp_path / "file.pth", {"state_dict": TENSORS, "args": content}
                if layout.startswith("plain"):
                    path.write_bytes(pickle.dumps({"args": content}, protocol=int(layout[-1])))
                elif layout == "legacy":
                    save_legacy(whole, path)
                else:
                    torch.save(whole, path, pickle_protocol=4 if layout.endswith("4") else 2)
                with pytest.raises(UnsafePickle, match="No code") as caught:
                    read_tensors(path)
                assert global_name in str(caught.value)
                assert str(path) in str(caught.value)
                assert "\n" not in str(caught.value)
                assert not (tmp_path / "ran").exists()


def test_the_hostile_pickle_runs_under_pythons_unpickler(tmp_path):
    """Negative control: Python's own unpickler does create the file."""
    pickle.loads(pickle.dumps(CreatesFile(tmp_path / "ran"))).close()
    assert (tmp_path / "ran").exists()


def test_reading_does_not_change_torchs_safe_globals(tmp_path):
    KINDS["zip with Namespace"](TENSORS, tmp_path / "file.pth")
    before = set(torch.serialization.get_safe_globals())
    read_tensors(tmp_path / "file.pth")
    assert set(torch.serialization.get_safe_globals()) == before


# A file's name may contain the first digits of its sha256.


def test_a_hash_in_the_name_is_checked(subtests, tmp_path_factory):
    for suffix in [".pth", ".pth.tar", ".bin", ".pt", ".safetensors"]:
        with subtests.test(suffix=str(suffix)):
            tmp_path = tmp_path_factory.mktemp("case")
            torch.save(TENSORS, tmp_path / "file")
            digest = hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
            for digits in (8, 16, 64):
                good = tmp_path / f"van-tiny_20220501-{digest[:digits]}{suffix}"
                good.write_bytes((tmp_path / "file").read_bytes())
                assert_equal(read_tensors(good)[0], TENSORS)
            wrong = "0" * 8 if digest[:8] != "0" * 8 else "1" * 8
            bad = (tmp_path / "file").rename(tmp_path / f"van-tiny_20220501-{wrong}{suffix}")
            with pytest.raises(HashMismatch, match=f"{wrong}.*{digest[:8]}"):
                read_tensors(bad)


def test_a_name_without_a_hash_is_not_checked(subtests, tmp_path_factory):
    for name in [
        "van-20220501.pth",
        "van-19991231.bin",
        "van_385941af.pth",
        "van-385941a.pth",
        "van-b0-finetune.pth",
        "best.pth",
        "385941af.pth",
        "van-385941zz.pth",
        "van-385941af.zip",
        "van-385941AF.pth",
    ]:
        with subtests.test(name=str(name)):
            tmp_path = tmp_path_factory.mktemp("case")
            torch.save(TENSORS, tmp_path / name)
            check_hash(tmp_path / name)
            assert_equal(read_tensors(tmp_path / name)[0], TENSORS)


def test_eight_digits_that_are_no_date_are_a_hash(tmp_path):
    torch.save(TENSORS, tmp_path / "van-30220501.pth")
    with pytest.raises(HashMismatch):
        read_tensors(tmp_path / "van-30220501.pth")


# Truncated files, and files of other formats.


def error_of(content: bytes, folder: Path) -> CheckpointError:
    path = folder / "cut.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return caught.value


def test_a_file_truncated_anywhere_is_refused(subtests, tmp_path_factory):
    for kind in KINDS:
        with subtests.test(kind=str(kind)):
            tmp_path = tmp_path_factory.mktemp("case")
            KINDS[kind](TENSORS, tmp_path / "whole.pth")
            whole = (tmp_path / "whole.pth").read_bytes()
            lengths = sorted({*range(40), *range(40, len(whole), max(1, len(whole) // 150)), len(whole) - 1})
            errors = [error_of(whole[:length], tmp_path) for length in lengths]
            # the first 8 bytes are not enough to detect the format
            longer = [error for length, error in zip(lengths, errors, strict=True) if length > 8]
            assert all(isinstance(error, TruncatedFile) for error in longer)


def test_a_larger_file_truncated_in_the_middle_is_reported_as_truncated(subtests, tmp_path_factory):
    for kind in KINDS:
        with subtests.test(kind=str(kind)):
            tmp_path = tmp_path_factory.mktemp("case")
            KINDS[kind]({"a": torch.randn(300, 300), "b": torch.randn(50_000)}, tmp_path / "whole.pth")
            whole = (tmp_path / "whole.pth").read_bytes()
            for fraction in (0.1, 0.3, 0.5, 0.7, 0.9, 0.999):
                error = error_of(whole[: int(fraction * len(whole))], tmp_path)
                assert isinstance(error, TruncatedFile)
                assert "again" in str(error)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(list(KINDS)))
def test_a_damaged_file_is_read_or_refused_without_other_exceptions(data, kind, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    KINDS[kind](TENSORS, folder / "whole.pth")
    content = bytearray((folder / "whole.pth").read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "damaged.pth").write_bytes(content)
    try:
        tensors, _ = read_tensors(folder / "damaged.pth")
    except CheckpointError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())


@settings(max_examples=100, deadline=None)
@given(
    content=st.binary(max_size=300),
    start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x10" + b"\0" * 7 + b"{"]),
)
def test_bytes_of_any_kind_are_refused(content, start, tmp_path_factory):
    error_of(start + content, tmp_path_factory.mktemp("bytes"))


def test_an_empty_file_is_reported_as_truncated(tmp_path):
    assert isinstance(error_of(b"", tmp_path), TruncatedFile)


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file"):
        read_tensors(tmp_path / "nowhere.pth")


def test_a_directory_is_reported(tmp_path):
    with pytest.raises(CheckpointError, match="directory"):
        read_tensors(tmp_path)


def test_a_file_of_another_format_is_reported_with_its_first_bytes(subtests, tmp_path_factory):
    for content in [b"<!DOCTYPE html><html>Not Found</html>", b"\xff\xd8\xff\xe0JFIF....", b"(dp0\n."]:
        with subtests.test(content=str(content)):
            tmp_path = tmp_path_factory.mktemp("case")
            error = error_of(content, tmp_path)
            assert isinstance(error, UnknownFormat)
            assert repr(content[:4]) in str(error)


def test_the_error_for_a_pickle_without_tensors_names_its_content(subtests, tmp_path_factory):
    for content, message in [
        ([1, 2], "dictionary.* list"),
        (torch.ones(3), "dictionary.* Tensor"),
        ({}, "keys: none"),
        ({"epoch": 3, "loss": 0.5}, "keys: epoch, loss"),
    ]:
        with subtests.test(content=str(content), message=str(message)):
            tmp_path = tmp_path_factory.mktemp("case")
            torch.save(content, tmp_path / "file.pth")
            with pytest.raises(UnknownFormat, match=message):
                read_tensors(tmp_path / "file.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_program_is_not_run(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "program.pt")
    with pytest.raises(CheckpointError, match=r"state dict.*TorchScript"):
        read_tensors(tmp_path / "program.pt")


def test_another_zip_is_refused(tmp_path):
    np.savez(tmp_path / "file.npz", a=np.ones(3))
    with pytest.raises(CheckpointError, match="PyTorch"):
        read_tensors(tmp_path / "file.npz")


def test_a_plain_pickle_without_tensors_is_refused(tmp_path):
    error = error_of(pickle.dumps({"a": [1, 2]}, protocol=4), tmp_path)
    assert "torch.save did not write" in str(error)
