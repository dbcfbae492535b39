"""An exported program predicts as the network, does not need this package, and contains no executable content."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from explain.small_models import small
from van.errors import CheckpointError, HashMismatch, UnsafePickle
from van.export import torch_export
from van.export.pt2_archive import HEADER, check_program, read_entries, read_header, write_archive
from van.export.verify import synthetic_images, verify
from van.export.writing import ExportOptions

MODEL = "models/model.json"


@pytest.fixture(scope="module")
def program_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a small classifier with a dynamic batch size."""
    path = tmp_path_factory.mktemp("exported") / "small.pt2"
    return torch_export.write(small(image_size=64), path, options=ExportOptions(dynamic=True))


def replace_entries(program_file: Path, target: Path, **changed: bytes) -> Path:
    """Write a copy with other entries and a new checksum, as an attacker could."""
    entries = read_entries(program_file)
    header = read_header(entries, program_file)
    replaced = {name.replace("__", "/").replace("_json", ".json"): content for name, content in changed.items()}
    del entries[HEADER]
    write_archive({**entries, **replaced}, header, target)
    return target


def edit_graph(program_file: Path, target: Path, old: str, new: str) -> Path:
    """Write a copy whose graph has ``new`` in place of the first ``old``, with a new checksum."""
    text = read_entries(program_file)[MODEL].decode()
    assert old in text
    return replace_entries(program_file, target, models__model_json=text.replace(old, new, 1).encode())


def test_the_session_predicts_as_pytorch_for_batches_of_one_and_seven(program_file):
    session, loaded = torch_export.open_session(program_file), small(image_size=64)
    assert verify(session, loaded, synthetic_images(2)).is_within(1e-5)
    assert not verify(session, small(image_size=64, seed=1), synthetic_images(2)).is_within(1e-5)
    images = torch.randn(7, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(session(images), loaded.network(images), rtol=1e-4, atol=1e-5)


def test_pytorch_alone_reads_the_file_and_its_graph_has_only_aten_operators(program_file):
    program = torch.export.load(program_file)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.conv2d.default" in targets
    assert all(target.startswith("aten.") for target in targets)
    (logits,) = program.module()(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 4)


def test_the_file_contains_no_path_of_the_machine_that_wrote_it(program_file):
    content = b"".join(read_entries(program_file).values())
    assert b"patch_embed1_proj_weight" in content
    assert b"site-packages" not in content
    assert str(Path(__file__).parents[2]).encode() not in content


def test_a_changed_weight_or_an_added_entry_is_rejected(program_file, tmp_path):
    entries = read_entries(program_file)
    weight = entries["data/weights/weight_3"]
    for name, changed_content in (
        ("data/weights/weight_3", bytes([weight[0] ^ 1]) + weight[1:]),
        ("data/weights/weight_999", b""),
    ):
        changed = tmp_path / "changed.pt2"
        with zipfile.ZipFile(changed, "w") as archive:
            for entry, content in {**entries, name: changed_content}.items():
                archive.writestr(f"van/{entry}", content)
        with pytest.raises(HashMismatch, match=r"changed\.pt2.*sha256"):
            torch_export.open_session(changed)


@pytest.mark.parametrize(
    ("old", "new", "fact"),
    [
        ("torch.ops.aten.gelu.default", "torch.hub.load", "target"),
        ("torch.ops.aten.gelu.default", "torch.ops.aten.from_file.default", "target"),
        ("torch.ops.aten.gelu.default", "_operator.attrgetter", "target"),
        ("Symbol('s", "__import__('os').getenv('s", "expr_str"),
        ("positive=True", "positive=9**9**9**9", "expr_str"),
        ("patch_embed1.proj.weight", 'x\\") or print(\\"', "parameter_name"),
        ("builtins.tuple", '__enum__', "in_spec"),
        ('"guards_code": []', '"guards_code": ["print(1)"]', "guards"),
    ],
)  # fmt: skip
def test_a_graph_with_other_operators_or_expressions_is_rejected(program_file, tmp_path, old, new, fact):
    """Each would reach an import, an eval or generated code in PyTorch's reader."""
    with pytest.raises(UnsafePickle, match=fact):
        torch_export.open_session(edit_graph(program_file, tmp_path / "changed.pt2", old, new))


def test_pickles_and_machine_code_are_rejected_and_not_executed(program_file, tmp_path):
    executed = tmp_path / "executed"

    class Malicious:
        def __reduce__(self) -> tuple:
            return Path.touch, (executed,)

    malicious = pickle.dumps(Malicious())
    config = json.loads(read_entries(program_file)["data/weights/model_weights_config.json"])
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    changes = (
        {"data__sample_inputs__model.pt": malicious},
        {"data__constants__opaque_obj_0": malicious},
        {"data__weights__model.pt": malicious},
        {"data__aotinductor__model__code.so": b"\x7fELF"},
        {"data__weights__model_weights_config_json": json.dumps(config).encode()},
    )
    for changed in changes:
        with pytest.raises(UnsafePickle, match=r"changed\.pt2"):
            torch_export.open_session(replace_entries(program_file, tmp_path / "changed.pt2", **changed))
    assert not executed.exists()
    assert pickle.loads(malicious) is None
    assert executed.exists()
    check_program(read_entries(program_file), program_file)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"{}"])
def test_a_file_that_is_no_archive_is_rejected(tmp_path, content):
    path = tmp_path / "broken.pt2"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.pt2.*\.pt2 archive"):
        torch_export.open_session(path)


def test_an_archive_of_another_program_is_rejected(tmp_path):
    content = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.ones(2),)), content)
    path = tmp_path / "other.pt2"
    path.write_bytes(content.getvalue())
    with pytest.raises(CheckpointError, match=r"other\.pt2.*van export"):
        torch_export.open_session(path)
