"""A compiled network predicts as the one in PyTorch, and is rejected where its machine code would not run."""

import shutil
from pathlib import Path

import pytest
import torch

from explain.small_models import small
from van.errors import CheckpointError, HashMismatch, UsageError
from van.export import aot_inductor, torch_export
from van.export.header import Header
from van.export.pt2_archive import HEADER, read_entries, read_header, write_archive
from van.export.verify import synthetic_images, verify
from van.export.writing import ExportOptions
from van.preprocess import CenterCropPreprocess


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_code_predicts_as_pytorch_and_requires_the_same_torch_version(tmp_path):
    loaded, path = small(image_size=64), tmp_path / "small.aoti.pt2"
    aot_inductor.write(loaded, path, options=ExportOptions(dynamic=True))
    session = aot_inductor.open_session(path)
    assert verify(session, loaded, synthetic_images(2)).is_within(1e-5)
    assert not verify(session, small(image_size=64, seed=1), synthetic_images(2)).is_within(1e-5)
    images = torch.randn(5, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(session(images), loaded.model(images), rtol=1e-4, atol=1e-5)
    assert any("machine code" in note for note in session.header.notes)
    session.close()

    entries = read_entries(path)
    content = path.read_bytes()
    offset = content.index(b"\x7fELF") + 100
    (changed := tmp_path / "changed.aoti.pt2").write_bytes(content[:offset] + b"!" + content[offset + 1 :])
    with pytest.raises((HashMismatch, CheckpointError)):
        aot_inductor.open_session(changed)
    other = read_header(entries, path)
    del entries[HEADER]
    other.versions["torch"] = "2.0.0"  # pyrefly: ignore
    write_archive(entries, other, changed)
    with pytest.raises(CheckpointError, match=r"changed\.aoti\.pt2.*torch 2\.0\.0"):
        aot_inductor.open_session(changed)


def header(**versions: str) -> Header:
    """Return the header of a file that was compiled on this machine except for ``versions``."""
    here = {
        "torch": torch.__version__,
        "system": aot_inductor.platform_name(),
        "instructions": " ".join(aot_inductor.cpu_instructions()),
    }
    return Header(
        task="classify",
        model="van_b0",
        class_names=("ant",),
        preprocess=CenterCropPreprocess(),
        format="aot-inductor",
        inputs={"images": (1, 3, 224, 224)},
        outputs=("logits",),
        versions=here | versions,
    )


@pytest.mark.parametrize(
    ("versions", "fact"),
    [
        ({"torch": "2.10.0"}, r"torch 2\.10\.0"),
        ({"system": "Linux riscv64"}, "Linux riscv64"),
        ({"instructions": "avx1024 sse"}, "avx1024"),
    ],
)
def test_code_for_another_torch_system_or_processor_is_rejected(versions, fact):
    path = Path("elsewhere.aoti.pt2")
    aot_inductor.check_same_machine(header(), path)
    with pytest.raises(CheckpointError, match=fact):
        aot_inductor.check_same_machine(header(**versions), path)


def test_a_missing_compiler_is_an_error_that_names_the_compilers(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"g\+\+ or clang\+\+.*CXX"):
        aot_inductor.write(small(image_size=64), tmp_path / "small.aoti.pt2", options=ExportOptions())
    assert not list(tmp_path.iterdir())


def test_a_torch_export_file_is_rejected_as_aot_inductor(tmp_path):
    path = torch_export.write(small(image_size=64), tmp_path / "small.pt2", options=ExportOptions())
    with pytest.raises(CheckpointError, match="aot-inductor"):
        aot_inductor.open_session(path)


def test_other_devices_than_the_cpu_are_rejected(tmp_path):
    with pytest.raises(UsageError, match="cuda"):
        aot_inductor.open_session(tmp_path / "small.aoti.pt2", device="cuda")
