"""int8 files predict nearly as float32 does, and latency and accuracy select their int8 layers."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from explain.small_models import small
from export.networks import build_with_head
from van.errors import CheckpointError, UsageError
from van.export import int8
from van.export.formats import FORMATS, open_session
from van.export.int8 import ALL_LAYERS, Trial, candidate_groups, format_trials, select_best
from van.export.int8_layers import exclude_layers, list_layers
from van.export.suppress_output import import_without_telemetry
from van.export.verify import synthetic_images, verify
from van.export.writing import ExportOptions, prepare

TINY = {"dims": (16, 16, 24, 32), "depths": (1, 1, 1, 1)}
IMAGES = synthetic_images(30, (64, 64))
OPENVINO = FORMATS["openvino"]


def trial(name: str, latency_ms: float, accuracy_drop: float = 0.0, **changes) -> Trial:
    """Return a trial whose other layers are float32, unless ``changes`` has another arithmetic."""
    default = Trial(
        name=name, excluded_layers=frozenset(), arithmetic="float32", latency_ms=latency_ms, accuracy_drop=accuracy_drop
    )
    return dataclasses.replace(default, **changes)


TRIALS = [trial("none", 10.0), trial("fast", 4.0, 0.02), trial("accurate", 6.0, 0.004), trial("slow", 11.0)]


@pytest.fixture(scope="module")
def graphs():
    """Return a small VAN for images of 64 px in float32 and with all layers in int8, and an input."""
    prepared = prepare(small(image_size=64, **TINY), ExportOptions(), format="openvino", precision="int8")
    original = int8.set_tensor_names(import_without_telemetry("openvino").convert_model(prepared.program()), prepared)
    inputs = [prepared.header.preprocess(image)[None].numpy() for image in IMAGES[:4]]
    return original, int8._quantize(import_without_telemetry("nncf"), original, inputs), inputs[0]


def predict(graph, image: np.ndarray) -> np.ndarray:
    """Return the output of OpenVINO in float32."""
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    return import_without_telemetry("openvino").Core().compile_model(graph, "CPU", settings)([image])[0]


def test_layers_are_classified_by_their_shape(graphs):
    layers = list_layers(graphs[0], rows=64)
    kinds = Counter(layer.kind for layer in layers)
    assert kinds == {
        "larger": 4, "depth-wise": 12, "channel-preserving 1x1": 12, "expanding 1x1": 4, "reducing 1x1": 4,
        "linear": 1,
    }  # fmt: skip
    assert Counter(layer.stage for layer in layers if layer.kind != "linear") == {1: 9, 2: 9, 3: 9, 4: 9}
    assert {layer.stage for layer in list_layers(graphs[0], rows=0)} == {0}


def test_candidate_groups_list_the_layers_that_stay_in_float32(graphs):
    layers = list_layers(graphs[0], rows=64)
    groups = candidate_groups(layers)
    assert groups[ALL_LAYERS] == set()
    assert groups["all but depth-wise"] == {layer.name for layer in layers if layer.kind == "depth-wise"}
    assert groups["all but stage 4"] == {layer.name for layer in layers if layer.stage == 4}
    assert len(groups["1x1 convolutions only"]) == len(layers) - 20
    assert len(groups["fc1 and fc2 only"]) == len(layers) - 8
    assert len(set(groups.values())) == len(groups)


def test_excluded_layers_have_their_float32_weights(graphs):
    """With all layers excluded only the sums and gates between them are int8."""
    original, quantized, image = graphs
    names = {layer.name for layer in list_layers(original, rows=64)}
    expected = predict(original, image)
    all_int8, half_int8 = (
        np.abs(predict(exclude_layers(quantized, original, excluded), image) - expected).max()
        for excluded in (set(), set(sorted(names)[::2]))
    )
    no_int8 = np.abs(predict(exclude_layers(quantized, original, names), image) - expected).max()
    assert 0 <= no_int8 < all_int8
    assert half_int8 > 0
    weights = [node.get_data().dtype for node in quantized.get_ordered_ops() if node.get_type_name() == "Constant"]
    assert np.dtype("int8") in weights
    copy = exclude_layers(quantized, original, names)
    remaining = [node.get_data().dtype for node in copy.get_ordered_ops() if node.get_type_name() == "Constant"]
    assert np.dtype("int8") not in remaining


def test_the_fastest_trial_within_the_accuracy_limit_is_selected():
    assert select_best(TRIALS, max_accuracy_drop=0.005) is TRIALS[2]
    assert select_best(TRIALS, max_accuracy_drop=0.02) is TRIALS[1]
    assert select_best(TRIALS, max_accuracy_drop=0.001) is None
    assert select_best(TRIALS[:1], max_accuracy_drop=1) is None


def test_the_table_lists_the_fastest_first_and_names_the_written_trial():
    title, *lines = format_trials(TRIALS, TRIALS[2], num_images=20, has_labels=True).splitlines()
    assert "top-1 drop" in title
    assert "20 validation images" in title
    assert [line.split()[0] for line in lines] == ["fast", "accurate", "none", "slow"]
    assert lines[1].split() == ["accurate", "float32", "6.00", "1.67x", "0.40%", "written"]
    assert "changed predictions" in format_trials(TRIALS, None, num_images=20, has_labels=False)


def test_bfloat16_without_int8_is_never_written_but_recommended_if_fastest():
    trials = [*TRIALS, trial("none", 3.0, arithmetic="bfloat16")]
    assert select_best(trials, max_accuracy_drop=1) is TRIALS[1]
    assert (
        format_trials(trials, TRIALS[1], num_images=20, has_labels=True)
        .splitlines()[-1]
        .startswith("bfloat16 without int8")
    )
    assert "--half" not in format_trials(TRIALS, TRIALS[1], num_images=20, has_labels=True)


def test_every_candidate_runs_in_both_arithmetics_and_the_finalists_are_measured_again(graphs, monkeypatch):
    original, quantized, image = graphs
    measured_rounds = []
    monkeypatch.setattr(int8, "has_bfloat16", lambda: True)
    monkeypatch.setattr(
        int8,
        "median_times",
        lambda compiled, _, *, rounds: measured_rounds.append(rounds) or dict.fromkeys(compiled, rounds),
    )
    groups = {ALL_LAYERS: frozenset(), "other": frozenset()}
    trials = int8.run_trials(quantized, original, groups, [image], None, max_accuracy_drop=1.0, threads=1, rounds=9)
    assert [(one.name, one.arithmetic) for one in trials] == [
        (name, arithmetic) for name in ("none", *groups) for arithmetic in ("float32", "bfloat16")
    ]
    assert measured_rounds == [3, 9]
    assert {one.latency_ms for one in trials} == {9}  # so few trials are all finalists


def test_accuracy_drop_uses_labels_if_known_and_float32_predictions_otherwise():
    reference, predictions = ([np.asarray(index) for index in classes] for classes in ([0, 1, 2, 3], [0, 2, 2, 1]))
    assert int8._accuracy_drop(predictions, reference, None) == 0.5
    assert int8._accuracy_drop(predictions, reference, [0, 1, 0, 1]) == 0.0  # one prediction becomes wrong, one right
    assert int8._accuracy_drop(predictions, reference, [0, 1, 2, 3]) == 0.5


@pytest.fixture
def float32_is_slow(monkeypatch):
    """Replace the measured latency, which is noise for a network so small: float32 is the slowest."""
    monkeypatch.setattr(
        int8, "median_times", lambda compiled, _, *, rounds: {n: 9.0 - (n != "none/float32") for n in compiled}
    )
    monkeypatch.setattr(int8, "has_bfloat16", lambda: False)


@pytest.mark.usefixtures("float32_is_slow")
def test_an_int8_file_predicts_nearly_as_the_network(tmp_path):
    loaded, logged, path = small(image_size=64, **TINY), [], tmp_path / "small.xml"
    options = ExportOptions(dynamic=True)
    candidates = (ALL_LAYERS, "all but depth-wise")
    int8.write(
        loaded, path, options=options, format_=OPENVINO, images=IMAGES, max_accuracy_drop=1.0,
        candidates=candidates, log=lambda text: logged.append((text, path.exists())),
    )  # fmt: skip
    (table, written_before), *more = logged
    assert not more
    assert not written_before
    assert [name in table for name in (*candidates, "none")] == [True] * 3
    session = open_session(path)
    assert session.header.precision == "int8"
    assert session.header.notes[-1].startswith(f"int8: {ALL_LAYERS}, other layers float32; ")
    verification = verify(session, loaded, IMAGES[:6])
    assert 1e-4 < verification.relative_diff < 0.3
    assert not verify(session, small(image_size=64, seed=1, **TINY), IMAGES[:6]).is_within(0.3)
    assert session(torch.randn(3, 3, 64, 64)).shape == (3, 4)


@pytest.mark.slow
@pytest.mark.usefixtures("float32_is_slow")
@pytest.mark.parametrize("dynamic", [False, True])
def test_int8_segmentation_maps_nearly_equal_those_of_the_network(dynamic, tmp_path):
    loaded, path = build_with_head("semantic_fpn"), tmp_path / "maps.xml"
    options = ExportOptions(dynamic=True) if dynamic else ExportOptions(input_size=(64, 64))
    arguments = {"options": options, "format_": OPENVINO, "candidates": (ALL_LAYERS,), "log": lambda _: None}
    int8.write(loaded, path, images=IMAGES, max_accuracy_drop=0.05, **arguments)
    session = open_session(path)
    verification = verify(session, loaded, [*IMAGES[:6], *(synthetic_images(3) if dynamic else ())])
    assert verification.agreement > 0.95
    assert 1e-3 < verification.relative_diff < 0.3
    assert session.header.precision == "int8"
    assert "changed predictions on 20 validation images" in session.header.notes[-1]
    if not dynamic:
        with pytest.raises(UsageError, match=r"at least 12 of 64 x 64.*0 of 12.*--dynamic"):
            int8.write(loaded, path, images=synthetic_images(12, (80, 64)), **arguments)


def test_nothing_is_written_if_no_trial_is_accurate_enough(tmp_path):
    path, loaded = tmp_path / "small.xml", small(image_size=64, **TINY)
    with pytest.raises(CheckpointError, match=r"small\.xml.*0\.5%.*--int8"):
        int8.write(
            loaded, path, options=ExportOptions(), format_=OPENVINO, images=IMAGES[:12], candidates=("none",),
            rounds=1, log=lambda _: None,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "fact"),
    [
        ({"format_": FORMATS["onnx"]}, "openvino.*onnx"),
        ({"options": ExportOptions(half=True)}, "int8.*half"),
        ({"images": IMAGES[:11]}, "12.*11"),
        ({"labels": [0]}, "30.*1"),
        ({"max_accuracy_drop": 2}, "max_accuracy_drop.*2"),
    ],
)
def test_invalid_arguments_are_rejected_before_quantization(tmp_path, changed, fact):
    arguments = {"options": ExportOptions(), "format_": OPENVINO, "images": IMAGES} | changed
    with pytest.raises(UsageError, match=fact):
        int8.write(small(image_size=64, **TINY), tmp_path / "small.xml", **arguments)
    detector = small(image_size=64, **TINY).replace(task="detect")
    with pytest.raises(UsageError, match=r"classify or segment.*detect"):
        int8.write(detector, tmp_path / "small.xml", options=ExportOptions(), format_=OPENVINO, images=IMAGES)
