"""An exported program answers as the network does, needs nothing of this package, and holds nothing that could run."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from explain.small import small
from van.errors import CheckpointError, HashMismatch, UnsafePickle
from van.export import torch_export
from van.export.pt2_archive import HEADER, check_program, header_of, read_parts, write_sealed
from van.export.verify import made_pictures, verify
from van.export.writing import ExportOptions

MODEL = "models/model.json"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small classifier for any number of pictures."""
    path = tmp_path_factory.mktemp("exported") / "small.pt2"
    return torch_export.write(small(size_px=64), path, options=ExportOptions(dynamic=True))


def resealed(written: Path, place: Path, **changed: bytes) -> Path:
    """A copy with other entries, sealed again, as somebody who means harm would."""
    parts = read_parts(written)
    header = header_of(parts, written)
    renamed = {name.replace("__", "/").replace("_json", ".json"): part for name, part in changed.items()}
    del parts[HEADER]
    write_sealed({**parts, **renamed}, header, place)
    return place


def with_graph(written: Path, place: Path, old: str, new: str) -> Path:
    """A copy whose graph has ``new`` in the place of the first ``old``, sealed again."""
    text = read_parts(written)[MODEL].decode()
    assert old in text
    return resealed(written, place, models__model_json=text.replace(old, new, 1).encode())


def test_the_session_answers_as_pytorch_for_one_picture_and_for_seven(written):
    session, loaded = torch_export.open_session(written), small(size_px=64)
    assert verify(session, loaded, made_pictures(2)).within(1e-5)
    assert not verify(session, small(size_px=64, seed=1), made_pictures(2)).within(1e-5)
    pictures = torch.randn(7, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(session(pictures), loaded.model(pictures), rtol=1e-4, atol=1e-5)


def test_pytorch_alone_reads_the_file_and_its_graph_is_of_aten_operators(written):
    program = torch.export.load(written)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.conv2d.default" in targets
    assert all(target.startswith("aten.") for target in targets)
    (answer,) = program.module()(torch.randn(2, 3, 64, 64))
    assert answer.shape == (2, 4)


def test_no_path_of_the_writer_s_machine_is_in_the_file(written):
    content = b"".join(read_parts(written).values())
    assert b"patch_embed1_proj_weight" in content
    assert b"site-packages" not in content
    assert str(Path(__file__).parents[2]).encode() not in content


def test_a_changed_weight_or_header_is_noticed(written, tmp_path):
    parts = read_parts(written)
    weight = parts["data/weights/weight_3"]
    for name, part in (
        ("data/weights/weight_3", bytes([weight[0] ^ 1]) + weight[1:]),
        ("data/weights/weight_999", b""),
    ):
        changed = tmp_path / "changed.pt2"
        with zipfile.ZipFile(changed, "w") as archive:
            for entry, content in {**parts, name: part}.items():
                archive.writestr(f"van/{entry}", content)
        with pytest.raises(HashMismatch, match="sealed with"):
            torch_export.open_session(changed)


@pytest.mark.parametrize(
    ("old", "new", "told"),
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
def test_a_graph_that_could_do_more_than_compute_is_refused(written, tmp_path, old, new, told):
    """Each would have reached an import, an eval or generated code in PyTorch's reader."""
    with pytest.raises(UnsafePickle, match=told):
        torch_export.open_session(with_graph(written, tmp_path / "changed.pt2", old, new))


def test_pickles_and_machine_code_are_refused_and_not_run(written, tmp_path):
    ran = tmp_path / "ran"

    class Harm:
        def __reduce__(self) -> tuple:
            return Path.touch, (ran,)

    harm = pickle.dumps(Harm())
    config = json.loads(read_parts(written)["data/weights/model_weights_config.json"])
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    entries = (
        {"data__sample_inputs__model.pt": harm},
        {"data__constants__opaque_obj_0": harm},
        {"data__weights__model.pt": harm},
        {"data__aotinductor__model__code.so": b"\x7fELF"},
        {"data__weights__model_weights_config_json": json.dumps(config).encode()},
    )
    for changed in entries:
        with pytest.raises(UnsafePickle, match="nothing was run"):
            torch_export.open_session(resealed(written, tmp_path / "changed.pt2", **changed))
    assert not ran.exists()
    assert pickle.loads(harm) is None
    assert ran.exists()
    check_program(read_parts(written), written)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"{}"])
def test_what_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "broken.pt2"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"no \.pt2 archive"):
        torch_export.open_session(path)


def test_an_archive_of_somebody_else_is_refused(tmp_path):
    content = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.ones(2),)), content)
    path = tmp_path / "other.pt2"
    path.write_bytes(content.getvalue())
    with pytest.raises(CheckpointError, match="was not written by this package"):
        torch_export.open_session(path)
