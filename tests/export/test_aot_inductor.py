"""A compiled network answers as the one in PyTorch does, and is refused where its machine code would not run."""

import shutil
from pathlib import Path

import pytest
import torch

from explain.small import small
from van.errors import CheckpointError, HashMismatch, UsageError
from van.export import aot_inductor, torch_export
from van.export.header import Header
from van.export.pt2_archive import HEADER, header_of, read_parts, write_sealed
from van.export.verify import made_pictures, verify
from van.export.writing import ExportOptions
from van.preprocess import Preprocess


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_code_answers_as_pytorch_and_is_bound_to_torch_by_version(tmp_path):
    loaded, path = small(size_px=64), tmp_path / "small.aoti.pt2"
    aot_inductor.write(loaded, path, options=ExportOptions(dynamic=True))
    session = aot_inductor.open_session(path)
    assert verify(session, loaded, made_pictures(2)).within(1e-5)
    assert not verify(session, small(size_px=64, seed=1), made_pictures(2)).within(1e-5)
    pictures = torch.randn(5, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(session(pictures), loaded.model(pictures), rtol=1e-4, atol=1e-5)
    assert any("machine code" in note for note in session.header.notes)
    session.close()

    parts = read_parts(path)
    content = path.read_bytes()
    place = content.index(b"\x7fELF") + 100
    (changed := tmp_path / "changed.aoti.pt2").write_bytes(content[:place] + b"!" + content[place + 1 :])
    with pytest.raises((HashMismatch, CheckpointError)):
        aot_inductor.open_session(changed)
    other = header_of(parts, path)
    del parts[HEADER]
    other.versions["torch"] = "2.0.0"  # pyrefly: ignore
    write_sealed(parts, other, changed)
    with pytest.raises(CheckpointError, match=r"was compiled for torch 2\.0\.0"):
        aot_inductor.open_session(changed)


def header(**versions: str) -> Header:
    """Of a file that was compiled elsewhere."""
    here = {
        "torch": torch.__version__,
        "system": aot_inductor.system(),
        "instructions": " ".join(aot_inductor.instructions()),
    }
    return Header(
        task="classify",
        model="van_b0",
        labels=("ant",),
        preprocess=Preprocess(),
        format="aot-inductor",
        inputs={"pictures": (1, 3, 224, 224)},
        outputs=("logits",),
        versions=here | versions,
    )


@pytest.mark.parametrize(
    ("versions", "told"),
    [
        ({"torch": "2.10.0"}, "for torch 2.10.0"),
        ({"system": "Linux riscv64"}, "for Linux riscv64"),
        ({"instructions": "avx1024 sse"}, "avx1024"),
    ],
)
def test_code_for_another_torch_system_or_processor_is_refused(versions, told):
    path = Path("elsewhere.aoti.pt2")
    aot_inductor.want_same_machine(header(), path)
    with pytest.raises(CheckpointError, match=told):
        aot_inductor.want_same_machine(header(**versions), path)


def test_without_a_compiler_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match="install g\\+\\+ or clang"):
        aot_inductor.write(small(size_px=64), tmp_path / "small.aoti.pt2", options=ExportOptions())
    assert not list(tmp_path.iterdir())


def test_a_program_without_machine_code_is_no_compiled_network(tmp_path):
    path = torch_export.write(small(size_px=64), tmp_path / "small.pt2", options=ExportOptions())
    with pytest.raises(CheckpointError, match="aot-inductor"):
        aot_inductor.open_session(path)


def test_it_answers_on_the_cpu_alone(tmp_path):
    with pytest.raises(UsageError, match="cuda"):
        aot_inductor.open_session(tmp_path / "small.aoti.pt2", device="cuda")
