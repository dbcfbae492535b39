"""An OpenVINO file answers as PyTorch does, in float32, and its two halves belong together."""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from export.made import LABELS, classifier, reopened, right_answer, tensors, with_head, written
from van.errors import CheckpointError, HashMismatch, MissingExtra, UsageError
from van.export import openvino as module
from van.export.formats import open_session

CLOSE = {"rtol": 0, "atol": 5e-6}
"""Sums in another order; the largest logits are about 1."""


def test_any_number_of_pictures_is_answered_as_by_pytorch(network, xml_file):
    session = open_session(xml_file, threads=1)
    for count in (1, 3):
        seen = torch.stack(tensors(*[(32, 32)] * count))
        torch.testing.assert_close(session(seen), right_answer(network, seen), **CLOSE)
    assert (session.header.format, session.header.labels) == ("openvino", LABELS)
    assert session.header.preprocess == network.preprocess
    assert set(session.header.versions) == {"van", "torch", "onnx", "onnxscript", "openvino"}


def test_bfloat16_would_be_noticed(network, xml_file):
    """The hint is heard: what OpenVINO could choose by itself is farther away than the tolerance above."""
    seen = torch.stack(tensors((32, 32), (32, 32)))
    session = module.open_session(xml_file, threads=1, arithmetic="bfloat16")
    difference = (session(seen) - right_answer(network, seen)).abs().max().item()
    if difference < CLOSE["atol"]:
        pytest.skip("this processor has no bfloat16")
    assert difference < 0.05


def test_maps_in_fixed_batches_are_those_of_pytorch(tmp_path):
    loaded = with_head("upernet")
    session = reopened(loaded, tmp_path, "openvino", seen=(64, 96), batch_size=2)
    seen = tensors((64, 96), (64, 96), (64, 96))
    for ours, theirs in zip(session(seen), right_answer(loaded, seen), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_maps_of_any_size_are_those_of_pytorch(head, tmp_path):
    loaded = with_head(head)
    session = reopened(loaded, tmp_path, "openvino", dynamic=True)
    seen = tensors((64, 96), (77, 101), (33, 70))
    for ours, theirs in zip(session(seen), right_answer(loaded, seen), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["retinanet", "fcos"])
def test_detectors_find_the_same_things(head, tmp_path):
    loaded = with_head(head)
    session = reopened(loaded, tmp_path, "openvino", seen=(64, 96))
    seen = tensors((64, 96), (50, 70))
    for ours, theirs in zip(session(seen), right_answer(loaded, seen), strict=True):
        assert len(theirs["scores"]) > 5
        assert ours["labels"].tolist() == theirs["labels"].tolist()
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=0, atol=1e-5)


def with_times(monkeypatch, *, bfloat16: float) -> None:
    """Set the clock: float32 takes 10 ms, bfloat16 so many."""
    monkeypatch.setattr(module, "has_bfloat16", lambda: True)
    monkeypatch.setattr(module, "median_times", lambda *_, **__: {"float32": 10.0, "bfloat16": bfloat16})


def test_half_stores_half_as_much_and_computes_in_float32(network, xml_file, tmp_path, monkeypatch):
    with_times(monkeypatch, bfloat16=9.9)
    path = written(network, tmp_path, "openvino", half=True, dynamic=True)
    weights = [file.with_suffix(".bin").stat().st_size for file in (path, xml_file)]
    assert 0.45 < weights[0] / weights[1] < 0.6
    session, seen = open_session(path, threads=1), torch.stack(tensors((32, 32), (32, 32)))
    right = right_answer(network, seen)
    assert 1e-6 < (session(seen) - right).abs().max() / right.abs().max() < 2e-2
    assert session.header.precision == "float16"
    assert session.header.notes == ("float16 weights; OpenVINO computes in float32",)


def test_half_computes_in_bfloat16_where_that_was_faster_and_the_processor_can(network, tmp_path, monkeypatch):
    with_times(monkeypatch, bfloat16=5.0)
    path = written(network, tmp_path, "openvino", half=True, dynamic=True)
    seen = torch.stack(tensors((32, 32), (32, 32)))
    asked = {kind: module.open_session(path, threads=1, arithmetic=kind)(seen) for kind in ("float32", "bfloat16")}
    for has, kind in ((False, "float32"), (True, "bfloat16")):
        monkeypatch.setattr(module, "has_bfloat16", lambda has=has: has)
        session = open_session(path, threads=1)
        assert torch.equal(session(seen), asked[kind])
        assert session.header.precision == "bfloat16"
        assert session.header.notes == (
            "float16 weights; OpenVINO computes in bfloat16, 2.0 times as fast as float32 here",
        )


def test_threads_get_their_own_answers(network, xml_file):
    session = open_session(xml_file, threads=1)
    batches = [torch.stack(tensors(*[(32, 32)] * (1 + seed % 3), seed=seed)) for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        for found, seen in zip(pool.map(session, batches), batches, strict=True):
            torch.testing.assert_close(found, right_answer(network, seen), **CLOSE)


def test_answers_do_not_change_when_the_next_ones_come(xml_file):
    session = open_session(xml_file, threads=1)
    first = session(torch.stack(tensors((32, 32))))
    kept = first.clone()
    session(torch.stack(tensors((32, 32), seed=9)))
    assert torch.equal(first, kept)


SIGNALLED = """
import faulthandler, gc, os, signal, sys
from pathlib import Path
from van.export import openvino as module
faulthandler.enable()  # which gives the thread a stack for signal handlers
got = []
signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
first = module.open_session(Path(sys.argv[1]), threads=1)
module.has_bfloat16()
second = module.open_session(Path(sys.argv[1]), threads=1)
for name in ("first", "second"):
    del globals()[name]
    gc.collect()
for _ in range(3):
    os.kill(os.getpid(), signal.SIGUSR1)
print(len(got))
"""


def test_sessions_end_in_any_order_and_signals_are_still_handled(xml_file, run_python):
    """The stack for signal handlers is not one that OpenVINO has given back."""
    assert run_python(SIGNALLED, str(xml_file)).strip() == "3"


def test_the_weights_of_another_network_are_refused(xml_copy, tmp_path):
    (tmp_path / "other").mkdir()
    other = written(classifier(seed=1), tmp_path / "other", "openvino", dynamic=True)
    shutil.copy(other.with_suffix(".bin"), xml_copy.with_suffix(".bin"))
    with pytest.raises(HashMismatch, match=r"network\.xml and network\.bin"):
        open_session(xml_copy)


def test_an_edited_header_a_missing_half_and_files_of_others_are_refused(xml_copy, tmp_path):
    text = xml_copy.read_text()
    assert "one &amp; two" in text
    xml_copy.write_text(text.replace("one &amp; two", "two &amp; one"))
    with pytest.raises(HashMismatch):
        open_session(xml_copy)
    xml_copy.write_text(text[: len(text) // 2])
    with pytest.raises(CheckpointError, match="cut off or damaged"):
        open_session(xml_copy)
    xml_copy.write_text(text)
    xml_copy.with_suffix(".bin").unlink()
    with pytest.raises(CheckpointError, match=r"network\.bin: no such file; it belongs beside network\.xml"):
        open_session(xml_copy)
    other = tmp_path / "page.xml"
    other.write_text("<html/>")
    other.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="something else wrote it"):
        open_session(other)


def test_a_sealed_file_that_is_no_network_is_refused_in_one_line(tmp_path):
    from van.export.header import UNSEALED, seal

    path = tmp_path / "sealed.xml"
    path.write_text(f"<net>{UNSEALED}</net>")
    path.with_suffix(".bin").write_bytes(b"")
    seal(path, path.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="OpenVINO cannot open it"):
        open_session(path)


def test_other_devices_and_absent_packages_are_named(network, xml_file, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="device is 'cuda'"):
        open_session(xml_file, device="cuda")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match="answering from an OpenVINO file needs the package 'openvino'"):
        open_session(xml_file)
    with pytest.raises(MissingExtra, match="writing an OpenVINO file needs the package 'openvino'"):
        written(network, tmp_path, "openvino")
