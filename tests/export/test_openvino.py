"""An OpenVINO file predicts as PyTorch in float32, and its .xml and .bin are bound to each other."""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from export.networks import (
    LABELS,
    build_classifier,
    build_with_head,
    export_and_open,
    export_file,
    reference_output,
    tensors,
)
from van.errors import CheckpointError, HashMismatch, MissingExtra, UsageError
from van.export import openvino as module
from van.export.formats import open_session

CLOSE = {"rtol": 0, "atol": 5e-6}
"""Another order of summation; the largest logits are about 1."""


def test_any_batch_size_predicts_as_pytorch(network, xml_file):
    session = open_session(xml_file, threads=1)
    for count in (1, 3):
        inputs = torch.stack(tensors(*[(32, 32)] * count))
        torch.testing.assert_close(session(inputs), reference_output(network, inputs), **CLOSE)
    assert (session.header.format, session.header.class_names) == ("openvino", LABELS)
    assert session.header.preprocess == network.preprocess
    assert set(session.header.versions) == {"van", "torch", "onnx", "onnxscript", "openvino"}


def test_bfloat16_exceeds_the_float32_tolerance(network, xml_file):
    """The precision hint has an effect: OpenVINO's default precision would exceed the tolerance above."""
    inputs = torch.stack(tensors((32, 32), (32, 32)))
    session = module.open_session(xml_file, threads=1, arithmetic="bfloat16")
    difference = (session(inputs) - reference_output(network, inputs)).abs().max().item()
    if difference < CLOSE["atol"]:
        pytest.skip("this processor has no bfloat16")
    assert difference < 0.05


def test_segmentation_maps_in_fixed_batches_equal_those_of_pytorch(tmp_path):
    loaded = build_with_head("upernet")
    session = export_and_open(loaded, tmp_path, "openvino", input_size=(64, 96), batch_size=2)
    inputs = tensors((64, 96), (64, 96), (64, 96))
    for ours, theirs in zip(session(inputs), reference_output(loaded, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_segmentation_maps_of_any_size_equal_those_of_pytorch(head, tmp_path):
    loaded = build_with_head(head)
    session = export_and_open(loaded, tmp_path, "openvino", dynamic=True)
    inputs = tensors((64, 96), (77, 101), (33, 70))
    for ours, theirs in zip(session(inputs), reference_output(loaded, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["retinanet", "fcos"])
def test_detectors_detect_the_same_objects(head, tmp_path):
    loaded = build_with_head(head)
    session = export_and_open(loaded, tmp_path, "openvino", input_size=(64, 96))
    inputs = tensors((64, 96), (50, 70))
    for ours, theirs in zip(session(inputs), reference_output(loaded, inputs), strict=True):
        assert len(theirs["scores"]) > 5
        assert ours["labels"].tolist() == theirs["labels"].tolist()
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=0, atol=1e-5)


def set_latency(monkeypatch, *, bfloat16: float) -> None:
    """Replace the measured latency: float32 takes 10 ms, bfloat16 the given number of ms."""
    monkeypatch.setattr(module, "has_bfloat16", lambda: True)
    monkeypatch.setattr(module, "median_times", lambda *_, **__: {"float32": 10.0, "bfloat16": bfloat16})


def test_half_stores_half_the_bytes_and_computes_in_float32(network, xml_file, tmp_path, monkeypatch):
    set_latency(monkeypatch, bfloat16=9.9)
    path = export_file(network, tmp_path, "openvino", half=True, dynamic=True)
    weights = [file.with_suffix(".bin").stat().st_size for file in (path, xml_file)]
    assert 0.45 < weights[0] / weights[1] < 0.6
    session, inputs = open_session(path, threads=1), torch.stack(tensors((32, 32), (32, 32)))
    expected = reference_output(network, inputs)
    assert 1e-6 < (session(inputs) - expected).abs().max() / expected.abs().max() < 2e-2
    assert session.header.precision == "float16"
    assert session.header.notes == ("float16 weights; OpenVINO computes in float32",)


def test_half_computes_in_bfloat16_if_faster_and_supported(network, tmp_path, monkeypatch):
    set_latency(monkeypatch, bfloat16=5.0)
    path = export_file(network, tmp_path, "openvino", half=True, dynamic=True)
    inputs = torch.stack(tensors((32, 32), (32, 32)))
    expected = {kind: module.open_session(path, threads=1, arithmetic=kind)(inputs) for kind in ("float32", "bfloat16")}
    for supported, kind in ((False, "float32"), (True, "bfloat16")):
        monkeypatch.setattr(module, "has_bfloat16", lambda supported=supported: supported)
        session = open_session(path, threads=1)
        assert torch.equal(session(inputs), expected[kind])
        assert session.header.precision == "bfloat16"
        (note,) = session.header.notes
        assert "float16 weights" in note
        assert "bfloat16, 2.0x" in note


def test_concurrent_threads_get_their_own_predictions(network, xml_file):
    session = open_session(xml_file, threads=1)
    batches = [torch.stack(tensors(*[(32, 32)] * (1 + seed % 3), seed=seed)) for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        for outputs, inputs in zip(pool.map(session, batches), batches, strict=True):
            torch.testing.assert_close(outputs, reference_output(network, inputs), **CLOSE)


def test_outputs_are_not_overwritten_by_the_next_call(xml_file):
    session = open_session(xml_file, threads=1)
    first = session(torch.stack(tensors((32, 32))))
    kept = first.clone()
    session(torch.stack(tensors((32, 32), seed=9)))
    assert torch.equal(first, kept)


CLOSE_AND_SIGNAL = """
import faulthandler, gc, os, signal, sys
from pathlib import Path
from van.export import openvino as module
faulthandler.enable()  # sets an alternate signal stack for the thread
received = []
signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
first = module.open_session(Path(sys.argv[1]), threads=1)
module.has_bfloat16()
second = module.open_session(Path(sys.argv[1]), threads=1)
for name in ("first", "second"):
    del globals()[name]
    gc.collect()
for _ in range(3):
    os.kill(os.getpid(), signal.SIGUSR1)
print(len(received))
"""


def test_signals_are_handled_after_sessions_close_in_any_order(xml_file, run_python):
    """The alternate signal stack is not one that OpenVINO has freed."""
    assert run_python(CLOSE_AND_SIGNAL, str(xml_file)).strip() == "3"


def test_the_weights_of_another_network_are_rejected(xml_copy, tmp_path):
    (tmp_path / "other").mkdir()
    other = export_file(build_classifier(seed=1), tmp_path / "other", "openvino", dynamic=True)
    shutil.copy(other.with_suffix(".bin"), xml_copy.with_suffix(".bin"))
    with pytest.raises(HashMismatch, match=r"network\.xml and network\.bin"):
        open_session(xml_copy)


def test_an_edited_header_a_missing_bin_and_files_of_other_programs_are_rejected(xml_copy, tmp_path):
    text = xml_copy.read_text()
    assert "one &amp; two" in text
    xml_copy.write_text(text.replace("one &amp; two", "two &amp; one"))
    with pytest.raises(HashMismatch):
        open_session(xml_copy)
    xml_copy.write_text(text[: len(text) // 2])
    with pytest.raises(CheckpointError, match=r"network\.xml"):
        open_session(xml_copy)
    xml_copy.write_text(text)
    xml_copy.with_suffix(".bin").unlink()
    with pytest.raises(CheckpointError, match=r"network\.bin.*network\.xml"):
        open_session(xml_copy)
    other = tmp_path / "page.xml"
    other.write_text("<html/>")
    other.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"page\.xml.*van export"):
        open_session(other)


def test_a_file_with_a_valid_checksum_but_no_network_is_rejected_by_openvino(tmp_path):
    from van.export.header import CHECKSUM_PLACEHOLDER, write_checksum

    path = tmp_path / "checksum.xml"
    path.write_text(f"<net>{CHECKSUM_PLACEHOLDER}</net>")
    path.with_suffix(".bin").write_bytes(b"")
    write_checksum(path, path.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=r"checksum\.xml.*OpenVINO"):
        open_session(path)


def test_other_devices_and_missing_packages_are_named(network, xml_file, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"device.*'cuda'"):
        open_session(xml_file, device="cuda")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"OpenVINO.*openvino"):
        open_session(xml_file)
    with pytest.raises(MissingExtra, match=r"OpenVINO.*openvino"):
        export_file(network, tmp_path, "openvino")
