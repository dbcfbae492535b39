"""A checkpoint round-trips to the bit, and every other file is refused with an error that names it."""

import dataclasses
import json
import math
import re
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from van.checkpoint import HEADER, VERSION, Checkpoint, is_checkpoint, load_checkpoint
from van.errors import CheckpointError, TruncatedFile
from van.preprocess import IMAGENET_MEAN, CenterCropPreprocess, ResizePreprocess

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32,
    torch.uint64,
]  # fmt: skip


def checkpoint(**changes: object) -> Checkpoint:
    values: dict = {
        "task": "classify",
        "model": "van_b0",
        "class_names": ("cat", "dog"),
        "preprocess": CenterCropPreprocess(image_size=64),
        "state": {"head.weight": torch.arange(6.0).view(2, 3)},
    }
    return Checkpoint(**values | changes)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().resolve_conj().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def assert_same(left: torch.Tensor, right: torch.Tensor) -> None:
    assert (left.dtype, left.shape) == (right.dtype, right.shape)
    assert bits(left) == bits(right)


def test_random_bits_of_every_dtype_round_trip(tmp_path, subtests):
    """Random bits include NaNs of every payload, infinities, denormals and negative zeros."""
    for dtype in DTYPES:
        with subtests.test(dtype=str(dtype)):
            state = {"w": torch.randint(0, 256, (3, 5, 16), dtype=torch.uint8).view(dtype)}
            checkpoint(state=state).save(tmp_path / "a")
            assert_same(load_checkpoint(tmp_path / "a").state["w"], state["w"])


def test_signaling_nans_keep_their_payload(tmp_path):
    nans = torch.tensor([0x7F800001, 0x7FC00001, -1, -(2**31)], dtype=torch.int32).view(torch.float32)
    checkpoint(state={"w": nans}).save(tmp_path / "a")
    loaded = load_checkpoint(tmp_path / "a").state["w"]
    assert loaded.view(torch.int32).tolist() == nans.view(torch.int32).tolist()


base = torch.arange(24.0).view(2, 3, 4)
LAYOUTS = {
    "scalar": torch.tensor(3.5),
    "true": torch.tensor(True),
    "empty": torch.zeros(0),
    "empty in one dimension": torch.zeros(2, 0, 3),
    "transposed": base.transpose(0, 2),
    "slice": base[:, 1:, ::2],
    "expanded": torch.ones(1, 3).expand(4, 3),
    "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "conjugated": torch.view_as_complex(torch.rand(3, 2)).conj(),
    "negated": torch.view_as_complex(torch.rand(3, 2)).conj().imag,
    "parameter": torch.nn.Parameter(torch.rand(3)),
    "": torch.rand(2),
    "слои.ü": torch.rand(2),
}


def test_a_tensor_of_any_layout_round_trips(tmp_path, subtests):
    for name in LAYOUTS:
        with subtests.test(name=str(name)):
            checkpoint(state={name: LAYOUTS[name]}).save(tmp_path / "a")
            assert_same(load_checkpoint(tmp_path / "a").state[name], LAYOUTS[name])


def test_tensors_that_share_memory_are_separate_after_loading(tmp_path):
    state = {"all": base, "row": base[1], "same": base, "flat": base.view(-1)}
    checkpoint(state=state, training={"ema": base}).save(tmp_path / "a")
    loaded = load_checkpoint(tmp_path / "a", with_training=True)
    for name, tensor in state.items():
        assert_same(loaded.state[name], tensor)
    loaded.state["all"].zero_()
    assert_same(loaded.state["same"], base)
    assert_same(loaded.training["ema"], base)


def test_saving_does_not_change_the_model_and_loading_does_not_change_the_file(tmp_path):
    layer = torch.nn.BatchNorm2d(3)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    checkpoint(state=layer.state_dict()).save(tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    for tensor in load_checkpoint(tmp_path / "a").state.values():
        tensor.zero_()
    assert (tmp_path / "a").read_bytes() == content
    for name, tensor in layer.state_dict().items():
        assert_same(tensor, before[name])


def test_loaded_tensors_survive_the_next_save_to_the_same_path(tmp_path):
    checkpoint(state={"w": torch.ones(100_000)}).save(tmp_path / "a")
    first = load_checkpoint(tmp_path / "a").state["w"]
    checkpoint(state={"w": torch.zeros(5)}).save(tmp_path / "a")
    assert first.eq(1).all()


def test_every_header_entry_round_trips(tmp_path):
    saved = checkpoint(
        class_names=("Katze", "犬", "", "a\nb", "\udce9"),  # the last is how Python reads an undecodable folder name
        model_options={"drop_path_rate": 0.1, "in_chans": 3},
        task_options={"category_ids": [1, 7]},
        preprocess=CenterCropPreprocess(
            image_size=97, crop_fraction=0.875, mean=IMAGENET_MEAN, interpolation="lanczos"
        ),
        recipe={"epochs": 3, "warmup": None, "augment": {"mixup": 0.8}, "flags": [True, 1e-300]},
        metrics={"top1": 2 / 3, "loss": 0.1},
        source="trained here",
        training_state={"progress": {"update": 7}, "best": -math.inf},
    )
    saved.save(tmp_path / "a")
    loaded = load_checkpoint(tmp_path / "a", with_training=True)
    for field in dataclasses.fields(Checkpoint):
        if field.name != "state":
            assert getattr(loaded, field.name) == getattr(saved, field.name), field.name


def test_a_resize_preprocess_round_trips(tmp_path):
    rule = ResizePreprocess(min_size=97, max_size=300, mean=IMAGENET_MEAN, interpolation="lanczos")
    checkpoint(preprocess=rule).save(tmp_path / "a")
    assert load_checkpoint(tmp_path / "a").preprocess == rule


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(class_names=st.lists(st.text(), max_size=5), recipe=st.dictionaries(st.text(), plain, max_size=4))
def test_any_class_names_and_plain_settings_round_trip(tmp_path, class_names, recipe):
    checkpoint(class_names=tuple(class_names), recipe=recipe).save(tmp_path / "a")
    loaded = load_checkpoint(tmp_path / "a")
    assert (loaded.class_names, loaded.recipe) == (tuple(class_names), recipe)


def test_training_tensors_are_read_only_with_training(tmp_path):
    saved = checkpoint(training={"optimizer/step": torch.tensor(4), "head.weight": torch.zeros(2)})
    saved.save(tmp_path / "a")
    lean = load_checkpoint(tmp_path / "a")
    assert list(lean.state) == ["head.weight"]
    assert lean.training == {}
    assert_same(lean.state["head.weight"], saved.state["head.weight"])
    full = load_checkpoint(tmp_path / "a", with_training=True)
    assert sorted(full.training) == ["head.weight", "optimizer/step"]
    assert_same(full.training["head.weight"], torch.zeros(2))
    assert_same(full.state["head.weight"], saved.state["head.weight"])


def test_a_model_s_tensor_name_under_training_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="'training/w'"):
        checkpoint(state={"training/w": torch.zeros(1)}).save(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_value_that_json_cannot_store_is_refused_before_anything_is_written(tmp_path, subtests):
    for value in [Path("x"), torch.zeros(1), {1, 2}, b"bytes"]:
        with subtests.test(value=str(value)):
            with pytest.raises(CheckpointError, match="'recipe'"):
                checkpoint(recipe={"setting": value}).save(tmp_path / "a")
            assert list(tmp_path.iterdir()) == []


def test_a_dtype_that_safetensors_lacks_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="complex128"):
        checkpoint(state={"w": torch.zeros(1, dtype=torch.complex128)}).save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_paths_may_be_strings(tmp_path):
    checkpoint().save(str(tmp_path / "a"))
    assert is_checkpoint(str(tmp_path / "a"))
    assert load_checkpoint(str(tmp_path / "a")).class_names == ("cat", "dog")


def test_is_checkpoint_is_true_only_for_saved_checkpoints(tmp_path):
    checkpoint().save(tmp_path / "ours")
    save_file({"w": torch.zeros(1)}, tmp_path / "theirs.safetensors")
    torch.save({"w": torch.zeros(1)}, tmp_path / "pickle.pth")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("twelve letters and more")
    assert [path.name for path in sorted(tmp_path.iterdir()) if is_checkpoint(path)] == ["ours"]
    assert not is_checkpoint(tmp_path)
    assert not is_checkpoint(tmp_path / "missing")


def test_the_error_for_other_safetensors_files_names_van_convert(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "w.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"van convert .*w\.safetensors OUT"):
        load_checkpoint(tmp_path / "w.safetensors")


def test_the_error_for_a_pickle_names_van_convert(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"van convert .*w\.pth OUT"):
        load_checkpoint(tmp_path / "w.pth")


def test_a_missing_file_a_directory_and_a_circular_link_are_reported(tmp_path):
    with pytest.raises(CheckpointError, match=r"missing: .*no such file"):
        load_checkpoint(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="directory"):
        load_checkpoint(tmp_path)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(CheckpointError, match=r"circle: .*no such file"):
        load_checkpoint(tmp_path / "circle")


def test_a_file_truncated_anywhere_is_reported_as_truncated(tmp_path):
    checkpoint(training={"m": torch.ones(9)}).save(tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    for length in [*range(0, len(content), 7), len(content) - 1]:
        (tmp_path / "b").write_bytes(content[:length])
        assert not is_checkpoint(tmp_path / "b")
        with pytest.raises(TruncatedFile, match="empty" if length == 0 else "truncated or damaged"):
            load_checkpoint(tmp_path / "b")


def rewritten(path: Path, header: str) -> Path:
    save_file({"head.weight": torch.zeros(2, 3)}, path, {HEADER: header})
    return path


def header_of(path: Path) -> dict:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"][HEADER])


def test_another_version_is_refused_with_both_versions(tmp_path, subtests):
    for version in [VERSION + 1, 0, None, "1", [1]]:
        with subtests.test(version=str(version)):
            checkpoint().save(tmp_path / "a")
            header = header_of(tmp_path / "a")
            assert header["version"] == VERSION
            path = rewritten(tmp_path / "b", json.dumps(header | {"version": version}))
            with pytest.raises(CheckpointError, match=rf"version: expected {VERSION}, got {re.escape(repr(version))};"):
                load_checkpoint(path)


def test_a_header_that_is_no_json_is_reported_as_damaged(tmp_path, subtests):
    for header in ["", "{", "nonsense", '{"version": 1', "[" * 100_000, "\x00"]:
        with subtests.test(header=str(header)), pytest.raises(CheckpointError, match="header is damaged"):
            load_checkpoint(rewritten(tmp_path / "a", header))


def test_a_header_that_is_no_json_object_is_refused(tmp_path, subtests):
    for header in ["[]", "null", "3", '"text"', "true"]:
        with subtests.test(header=str(header)), pytest.raises(CheckpointError, match="expected a JSON object"):
            load_checkpoint(rewritten(tmp_path / "a", header))


def test_a_header_entry_of_another_type_is_named(tmp_path, subtests):
    for name in [
        "task",
        "model",
        "class_names",
        "preprocess",
        "model_options",
        "recipe",
        "metrics",
        "source",
        "training_state",
    ]:
        for value in [None, 3, "text", [1, "a"], {"a": 1}, [["a"]]]:
            with subtests.test(name=str(name), value=str(value)):
                checkpoint().save(tmp_path / "a")
                header = header_of(tmp_path / "a")
                path = rewritten(tmp_path / "b", json.dumps(header | {name: value}))
                if name != "preprocess" and isinstance(value, type(header[name])) and value not in ([1, "a"], [["a"]]):
                    assert getattr(load_checkpoint(path), name) == value
                    return
                with pytest.raises(CheckpointError, match=name):
                    load_checkpoint(path)
                del header[name]
                with pytest.raises(CheckpointError, match=f"{name}'.*no such entry"):
                    load_checkpoint(rewritten(tmp_path / "b", json.dumps(header)))


def test_a_header_without_task_options_is_read_as_none(tmp_path):
    checkpoint(task_options={"category_ids": [1]}).save(tmp_path / "a")
    header = header_of(tmp_path / "a")
    assert header["task_options"] == {"category_ids": [1]}
    for value in (None, 3, "text", [1]):
        with pytest.raises(CheckpointError, match=r"task_options'.*dict"):
            load_checkpoint(rewritten(tmp_path / "b", json.dumps(header | {"task_options": value})))
    del header["task_options"]
    assert load_checkpoint(rewritten(tmp_path / "b", json.dumps(header))).task_options == {}


def test_an_unknown_header_entry_is_refused(tmp_path, subtests):
    for extra in [{"surprise": 1}, {"state": {}}, {"training": {}}, {"self": 1}]:
        with subtests.test(extra=str(extra)):
            checkpoint().save(tmp_path / "a")
            with pytest.raises(CheckpointError, match=next(iter(extra))):
                load_checkpoint(rewritten(tmp_path / "b", json.dumps(header_of(tmp_path / "a") | extra)))


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.integers(0, 900), st.integers(0, 255) | st.sampled_from(list(b'0123456789{}[]",:'))),
        min_size=1,
        max_size=3,
    )
)
def test_changed_bytes_give_a_checkpoint_or_a_checkpoint_error(tmp_path, changes):
    checkpoint(state={"w": torch.ones(3), "n": torch.tensor(1)}).save(tmp_path / "a")
    content = bytearray((tmp_path / "a").read_bytes())
    for position, value in changes:
        content[position % len(content)] = value
    (tmp_path / "b").write_bytes(content)
    is_checkpoint(tmp_path / "b")
    try:
        loaded = load_checkpoint(tmp_path / "b", with_training=True)
    except CheckpointError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in {**loaded.state, **loaded.training}.values())
