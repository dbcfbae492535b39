"""8-bit files answer nearly as float32 does, and measured time and answers decide which layers they have in 8 bits."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from explain.small import small
from export.made import with_head
from van.errors import CheckpointError, UsageError
from van.export import int8
from van.export.formats import FORMATS, open_session
from van.export.int8 import EVERYTHING, Trial, choices, choose, table_of
from van.export.int8_layers import layers_of, spared
from van.export.quiet import quiet_import
from van.export.verify import made_pictures, verify
from van.export.writing import ExportOptions, prepare

TINY = {"dims": (16, 16, 24, 32), "depths": (1, 1, 1, 1)}
PICTURES = made_pictures(30, (64, 64))
OPENVINO = FORMATS["openvino"]


def trial(name: str, latency_ms: float, loss: float = 0.0, **changes) -> Trial:
    """In float32 but for the 8 bits, unless it is said otherwise."""
    plain = Trial(name=name, spared=frozenset(), arithmetic="float32", latency_ms=latency_ms, loss=loss)
    return dataclasses.replace(plain, **changes)


TRIALS = [trial("none", 10.0), trial("fast", 4.0, 0.02), trial("careful", 6.0, 0.004), trial("slow", 11.0)]


@pytest.fixture(scope="module")
def graphs():
    """A small VAN for pictures of 64 px: in float32, and with every layer in 8 bits."""
    prepared = prepare(small(size_px=64, **TINY), ExportOptions(), format="openvino", precision="int8")
    plain = int8.named(quiet_import("openvino").convert_model(prepared.program()), prepared)
    seen = [prepared.header.preprocess(picture)[None].numpy() for picture in PICTURES[:4]]
    return plain, int8._quantise(quiet_import("nncf"), plain, seen), seen[0]


def answer(graph, picture: np.ndarray) -> np.ndarray:
    """By OpenVINO in float32."""
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    return quiet_import("openvino").Core().compile_model(graph, "CPU", settings)([picture])[0]


def test_layers_are_told_by_their_shape(graphs):
    layers = layers_of(graphs[0], rows=64)
    kinds = Counter(layer.kind for layer in layers)
    assert kinds == {
        "larger": 4, "depth-wise": 12, "keeping 1x1": 12, "widening 1x1": 4, "narrowing 1x1": 4, "linear": 1,
    }  # fmt: skip
    assert Counter(layer.stage for layer in layers if layer.kind != "linear") == {1: 9, 2: 9, 3: 9, 4: 9}
    assert {layer.stage for layer in layers_of(graphs[0], rows=0)} == {0}


def test_choices_name_what_they_keep_in_float32(graphs):
    layers = layers_of(graphs[0], rows=64)
    offered = choices(layers)
    assert offered[EVERYTHING] == set()
    assert offered["all but depth-wise"] == {layer.name for layer in layers if layer.kind == "depth-wise"}
    assert offered["all but stage 4"] == {layer.name for layer in layers if layer.stage == 4}
    assert len(offered["1x1 convolutions only"]) == len(layers) - 20
    assert len(offered["fc1 and fc2 only"]) == len(layers) - 8
    assert len(set(offered.values())) == len(offered)


def test_spared_layers_are_as_they_were(graphs):
    """With all of them spared only the sums and gates between layers are left in 8 bits."""
    plain, quantised, picture = graphs
    names = {layer.name for layer in layers_of(plain, rows=64)}
    right = answer(plain, picture)
    every, half = (
        np.abs(answer(spared(quantised, plain, some), picture) - right).max()
        for some in (set(), set(sorted(names)[::2]))
    )
    none = np.abs(answer(spared(quantised, plain, names), picture) - right).max()
    assert 0 <= none < every
    assert half > 0
    weights = [node.get_data().dtype for node in quantised.get_ordered_ops() if node.get_type_name() == "Constant"]
    assert np.dtype("int8") in weights
    left = [node for node in spared(quantised, plain, names).get_ordered_ops() if node.get_type_name() == "Constant"]
    assert np.dtype("int8") not in [node.get_data().dtype for node in left]


def test_the_fastest_that_is_good_enough_is_chosen():
    assert choose(TRIALS, max_loss=0.005) is TRIALS[2]
    assert choose(TRIALS, max_loss=0.02) is TRIALS[1]
    assert choose(TRIALS, max_loss=0.001) is None
    assert choose(TRIALS[:1], max_loss=1) is None


def test_the_table_has_the_fastest_first_and_marks_what_is_written():
    title, *lines = table_of(TRIALS, TRIALS[2], judged=20, known=True).splitlines()
    assert "top-1 lost" in title
    assert "20 held-out pictures" in title
    assert [line.split()[0] for line in lines] == ["fast", "careful", "none", "slow"]
    assert lines[1].split() == ["careful", "float32", "6.00", "1.67x", "0.40%", "written"]
    assert "answers changed" in table_of(TRIALS, None, judged=20, known=False)


def test_bfloat16_alone_is_never_written_but_named_where_it_is_the_fastest():
    trials = [*TRIALS, trial("none", 3.0, arithmetic="bfloat16")]
    assert choose(trials, max_loss=1) is TRIALS[1]
    assert table_of(trials, TRIALS[1], judged=20, known=True).splitlines()[-1].startswith("bfloat16 without 8 bits")
    assert "--half" not in table_of(TRIALS, TRIALS[1], judged=20, known=True)


def test_every_choice_is_tried_in_both_kinds_of_arithmetic_and_the_best_are_timed_again(graphs, monkeypatch):
    plain, quantised, picture = graphs
    timed = []
    monkeypatch.setattr(int8, "has_bfloat16", lambda: True)
    monkeypatch.setattr(
        int8, "median_times", lambda compiled, _, *, rounds: timed.append(rounds) or dict.fromkeys(compiled, rounds)
    )
    offered = {EVERYTHING: frozenset(), "other": frozenset()}
    trials = int8.try_all(quantised, plain, offered, [picture], None, max_loss=1.0, threads=1, rounds=9)
    assert [(one.name, one.arithmetic) for one in trials] == [
        (name, kind) for name in ("none", *offered) for kind in ("float32", "bfloat16")
    ]
    assert timed == [3, 9]
    assert {one.latency_ms for one in trials} == {9}  # all of so few are among the last


def test_loss_is_of_the_truth_where_it_is_known_and_of_float32_s_answers_else():
    right, answers = ([np.asarray(each) for each in classes] for classes in ([0, 1, 2, 3], [0, 2, 2, 1]))
    assert int8._loss(answers, right, None) == 0.5
    assert int8._loss(answers, right, [0, 1, 0, 1]) == 0.0  # one answer lost, one found
    assert int8._loss(answers, right, [0, 1, 2, 3]) == 0.5


@pytest.fixture
def float32_is_slow(monkeypatch):
    """The clock of so small a network says nothing, so it is set: float32 is the slowest."""
    monkeypatch.setattr(
        int8, "median_times", lambda compiled, _, *, rounds: {n: 9.0 - (n != "none/float32") for n in compiled}
    )
    monkeypatch.setattr(int8, "has_bfloat16", lambda: False)


@pytest.mark.usefixtures("float32_is_slow")
def test_a_written_file_answers_nearly_as_the_network(tmp_path):
    loaded, told, path = small(size_px=64, **TINY), [], tmp_path / "small.xml"
    options = ExportOptions(dynamic=True)
    only = (EVERYTHING, "all but depth-wise")
    int8.write(
        loaded, path, options=options, format_=OPENVINO, pictures=PICTURES, max_loss=1.0, only=only,
        say=lambda text: told.append((text, path.exists())),
    )  # fmt: skip
    (table, written_before), *more = told
    assert not more
    assert not written_before
    assert [name in table for name in (*only, "none")] == [True] * 3
    session = open_session(path)
    assert session.header.precision == "int8"
    assert session.header.notes[-1].startswith(f"int8: {EVERYTHING}, float32 between; ")
    found = verify(session, loaded, PICTURES[:6])
    assert 1e-4 < found.relative < 0.3
    assert not verify(session, small(size_px=64, seed=1, **TINY), PICTURES[:6]).within(0.3)
    assert session(torch.randn(3, 3, 64, 64)).shape == (3, 4)


@pytest.mark.slow
@pytest.mark.usefixtures("float32_is_slow")
@pytest.mark.parametrize("dynamic", [False, True])
def test_maps_in_8_bits_are_nearly_those_of_the_network(dynamic, tmp_path):
    loaded, path = with_head("semantic_fpn"), tmp_path / "maps.xml"
    options = ExportOptions(dynamic=True) if dynamic else ExportOptions(seen=(64, 64))
    asked = {"options": options, "format_": OPENVINO, "only": (EVERYTHING,), "say": lambda _: None}
    int8.write(loaded, path, pictures=PICTURES, max_loss=0.05, **asked)
    session = open_session(path)
    found = verify(session, loaded, [*PICTURES[:6], *(made_pictures(3) if dynamic else ())])
    assert found.agreement > 0.95
    assert 1e-3 < found.relative < 0.3
    assert session.header.precision == "int8"
    assert "of the answers are not float32's on 20 held-out pictures" in session.header.notes[-1]
    if not dynamic:
        with pytest.raises(UsageError, match=r"0 of 12 pictures are seen as 64 x 64; .* or a file with --dynamic"):
            int8.write(loaded, path, pictures=made_pictures(12, (80, 64)), **asked)


def test_nothing_is_written_where_no_choice_is_good_enough(tmp_path):
    path, loaded = tmp_path / "small.xml", small(size_px=64, **TINY)
    with pytest.raises(CheckpointError, match="export without --int8"):
        int8.write(
            loaded, path, options=ExportOptions(), format_=OPENVINO, pictures=PICTURES[:12], only=("none",), rounds=1,
            say=lambda _: None,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"format_": FORMATS["onnx"]}, "openvino; the format is onnx"),
        ({"options": ExportOptions(half=True)}, "exclude each other"),
        ({"pictures": PICTURES[:11]}, "11 pictures"),
        ({"truths": [0]}, "1 truths for 30"),
        ({"max_loss": 2}, "max_loss is 2"),
    ],
)
def test_what_will_not_do_is_refused_before_anything_is_done(tmp_path, changed, told):
    asked = {"options": ExportOptions(), "format_": OPENVINO, "pictures": PICTURES} | changed
    with pytest.raises(UsageError, match=told):
        int8.write(small(size_px=64, **TINY), tmp_path / "small.xml", **asked)
    detector = dataclasses.replace(small(size_px=64, **TINY), task="detect")
    with pytest.raises(UsageError, match="classify or segment"):
        int8.write(detector, tmp_path / "small.xml", options=ExportOptions(), format_=OPENVINO, pictures=PICTURES)
