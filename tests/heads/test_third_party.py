"""A head of another package trains, evaluates, predicts, exports and serves through the command line.

The package is ``toy_head.py`` beside this file, installed as far as Python can tell: a folder on the path with the
metadata that names its entry point.
"""

import json
import os
from pathlib import Path

import pytest

from datasets.synthetic_annotated import task_class_names, write_scenes
from serving.server import running_server
from van.checkpoint import load_checkpoint
from van.errors import UsageError
from van.heads import HEADS, create_model, heads_of, register_head
from van.model import Model
from van.preprocess import ResizePreprocess

TESTS = Path(__file__).parents[1]
RUN = """
import json, sys
from van.cli.main import main
for command in json.loads(sys.argv[1]):
    status = main(command)
    assert status == 0, (status, command)
    print("----", flush=True)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Environment variables of an interpreter in which the toy head is installed."""
    site = tmp_path_factory.mktemp("site")
    metadata = site / "toy_head-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-head\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[van.heads]\ntoy = toy_head\n")
    (site / "toy_head.py").write_text((TESTS / "heads" / "toy_head.py").read_text())
    return {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}


def test_a_registered_head_is_listed_and_its_name_is_taken(toy):
    assert HEADS.find("toy").title == "Toy"
    assert heads_of("segment")[-1] == "toy"
    with pytest.raises(UsageError, match="head 'toy' is already registered"):
        register_head("toy", title="Toy", task="segment")(lambda backbone, **options: None)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), train=2, validation=2) / "ade"


def test_a_head_of_another_package_predicts_evaluates_exports_and_serves(
    toy, environment, scenes, run_python, tmp_path
):
    class_names = task_class_names("segment")
    options = {"head": "toy", "depths": (1, 1, 1, 1)}
    network = create_model("van_b0", num_classes=len(class_names), options=options)
    rule = ResizePreprocess(min_size=64, max_size=64)
    model = Model(network, name="van_b0", options=options, task="segment", class_names=class_names, preprocess=rule)
    checkpoint, exported = str(model.save(tmp_path / "toy.safetensors")), str(tmp_path / "toy.onnx")
    image = next((scenes / "images" / "validation").iterdir())
    commands = [
        ["eval", checkpoint, "--data", str(scenes), "--device", "cpu", "--json"],
        ["export", checkpoint, "--out", exported, "--json"],
        ["predict", checkpoint, str(image), "--device", "cpu", "--json"],
        ["predict", exported, str(image), "--json"],
    ]
    printed = run_python(RUN, json.dumps(commands), **environment)
    evaluation, _, *predictions = map(json.loads, printed.split("----")[:-1])
    assert evaluation["task"] == "segment"
    assert 0 <= evaluation["metrics"]["mean_iou"] <= 1
    assert predictions[0]["segments"]
    assert predictions[0]["segments"] == predictions[1]["segments"]
    with running_server(checkpoint, "--device", "cpu", **environment) as server:
        answer = server.client.post("/predict", files={"image": ("a.png", image.read_bytes())})
        assert answer.status_code == 200, answer.text
        assert "segments" in answer.text


def test_a_head_of_another_package_trains_through_the_command_line(environment, scenes, run_python, tmp_path):
    small = ["--min-size", "64", "--max-size", "64", "--crop-size", "64", "--epochs", "1", "--batch-size", "2"]
    scratch = ["--model", "van_b0", "--init-from", "scratch", "--device", "cpu", "--warmup-epochs", "0"]
    command = ["train", "segment", "--head", "toy", "--data", str(scenes), "--out", str(tmp_path / "run")]
    run_python(RUN, json.dumps([[*command, *small, *scratch]]), **environment)
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").model_options["head"] == "toy"
