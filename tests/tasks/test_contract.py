"""The contract of tasks, which every registered one passes: building, collating, padding, decoding, finite outputs."""

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch

from tasks.processes import INPUT_SIZE, LABELS, OPTIONS, RandomDataset
from van.errors import ShapeError, UsageError
from van.tasks import TASKS, make_task, register_task
from van.tasks.base import Batch, ImageMeta, Metric, Task

MONITORS = {"classify": "top1", "detect": "box_ap", "instances": "mask_ap", "segment": "mean_iou", "panoptic": "pq"}
by_task = pytest.mark.parametrize("name", list(TASKS))


def make(name: str) -> Task:
    return make_task(name, LABELS, OPTIONS.get(name, {}))


def samples_and_outputs(name: str) -> tuple[list[dict[str, Any]], Any]:
    """Return three samples and the outputs of a network for them."""
    if name == "classify":
        outputs = torch.tensor([[4.0, 0, 0], [0, 3.0, 0], [1.0, 0, 2.0]])
        images = [torch.full((3, *INPUT_SIZE), float(index)) for index in range(3)]
        return [{"image": image, "target": 2 - n, "name": f"image {n}"} for n, image in enumerate(images)], outputs
    data = RandomDataset(name, 3)
    return [data[index] for index in range(3)], data.outputs


def batch_of(name: str, valid: list[bool] | None = None) -> tuple[Batch, Any]:
    samples, outputs = samples_and_outputs(name)
    if valid is not None:
        samples = [sample | {"valid": each} for sample, each in zip(samples, valid, strict=True)]
    return make(name).collate(samples), outputs


def comparable(results: dict[str, Any]) -> Any:
    return json.loads(json.dumps(results, default=lambda value: np.asarray(value).tolist()))


@by_task
def test_a_task_is_rebuilt_from_its_json(name):
    task = make(name)
    stored_name, class_names, options = json.loads(json.dumps([task.name, task.class_names, task.options]))
    rebuilt = make_task(stored_name, class_names, options)
    assert (type(rebuilt), vars(rebuilt).keys()) == (type(task), vars(task).keys())
    for attribute in ("name", "monitor", "class_names", "options"):
        assert getattr(rebuilt, attribute) == getattr(task, attribute)
    assert (task.name, task.monitor, task.class_names) == (name, MONITORS[name], LABELS)
    assert isinstance(task, Task)
    assert isinstance(task.metric(), Metric)


@by_task
def test_batches_have_the_readable_samples_in_order(name):
    samples, _ = samples_and_outputs(name)
    mixed = [
        samples[0], {"name": "b", "unreadable": "is empty"}, samples[1] | {"valid": False},
        {"name": "d", "unreadable": "padding", "valid": False},
        samples[2] | {"skipped": (("e", "is damaged"),)}, {"name": "b", "unreadable": "is empty"},
    ]  # fmt: skip
    batch = make(name).collate(mixed)
    assert batch.names == ("image 0", "image 1", "image 2")
    assert [float(image[0, 0, 0]) for image in batch.images] == [0, 1, 2]
    assert all(meta.input_size == INPUT_SIZE for meta in batch.image_metas)
    assert batch.valid.tolist() == [True, False, True]
    assert batch.unreadable == (("b", "is empty"), ("e", "is damaged"))  # without duplicates and padding
    assert (batch.targets.tolist() if name == "classify" else len(batch.targets)) == (
        [2, 1, 0] if name == "classify" else 3
    )
    empty = make(name).collate([{"name": "b", "unreadable": "is empty"}])
    assert len(empty) == 0
    assert empty.to(torch.device("cpu")).unreadable == (("b", "is empty"),)


@by_task
def test_padding_and_other_metrics_do_not_change_a_metric(name):
    task = make(name)
    whole, first = task.metric().to(torch.device("cpu")), task.metric()
    batch, outputs = batch_of(name)
    whole.update(outputs, batch)
    padded, _ = batch_of(name, [True, False, False])
    first.update(outputs, padded)
    again = task.metric()
    again.update(outputs[:1], task.collate(samples_and_outputs(name)[0][:1]))
    assert comparable(first.compute()) == comparable(again.compute())
    assert comparable(whole.compute()) != comparable(again.compute())  # negative control
    results = whole.compute()
    assert MONITORS[name] in results["metrics"]
    assert all(isinstance(value, float) for value in results["metrics"].values())
    assert set(results["per_class"]) <= set(LABELS)


@by_task
def test_every_image_has_a_prediction_of_its_name_and_size(name):
    batch, outputs = batch_of(name)
    predictions = make(name).decode(outputs, batch.image_metas)
    assert [prediction.name for prediction in predictions] == ["image 0", "image 1", "image 2"]
    assert all(prediction.class_names == LABELS for prediction in predictions)
    assert make(name).decode(outputs[:0], ()) == []


@by_task
def test_non_finite_outputs_raise(name, subtests):
    """Without the check they would decode to no object, or to the first class."""
    _, outputs = batch_of(name)
    names = ("boxes", "scores", "class_logits", "mask_logits")
    keys = [key for key in names if isinstance(outputs[0], dict) and key in outputs[0]]
    for key in keys or [None]:
        for value in (torch.nan, torch.inf):
            with subtests.test(key=key, value=value):
                damaged = copy.deepcopy(outputs[0])
                (damaged if key is None else damaged[key]).reshape(-1)[0] = value
                meta = ImageMeta("x.jpg", (24, 48), INPUT_SIZE)
                with pytest.raises(ShapeError, match="nan" if name == "classify" else f"x.jpg.*{key or 'logits'}"):
                    make(name).decode(damaged[None] if name == "classify" else [damaged], [meta])
                if name != "classify":  # whose loss reports it
                    batch = make(name).collate(samples_and_outputs(name)[0][:1])
                    with pytest.raises(ShapeError, match=key or "logits"):
                        make(name).metric().update([damaged], batch)


def test_unknown_tasks_and_options_and_missing_options_raise(subtests):
    for name, options, reason in [
        ("depth", {}, "classify, detect, instances, segment, panoptic.*'depth'"),
        ("segment", {"things": [True]}, "segment.*none.*things"),
        ("detect", {"masks": True}, "detect.*category_ids, min_score.*masks"),
        ("panoptic", {}, "panoptic.*things"),
    ]:
        with subtests.test(name=name), pytest.raises(UsageError, match=reason):
            make_task(name, LABELS, options)
    with pytest.raises(ShapeError, match=r"things.*3.*1"):
        make_task("panoptic", LABELS, {"things": [True]})
    with pytest.raises(ShapeError, match=r"category_ids.*3.*1"):
        make_task("instances", LABELS, {"category_ids": [1]})
    assert make_task("detect", ["cat"]).options == {"category_ids": []}
    assert make_task("detect", ["cat"], {"min_score": 0.7}).min_score == 0.7


def test_a_task_of_another_package_is_built_by_name(monkeypatch):
    monkeypatch.setattr(TASKS, "_entries", dict(TASKS._entries))

    @register_task("depth", required=("unit",))
    class DepthTask(Task):
        def __init__(self, class_names: Any, unit: str) -> None:
            self.class_names, self.unit = tuple(class_names), unit

    assert make_task("depth", ["near"], {"unit": "m"}).unit == "m"
    with pytest.raises(UsageError, match=r"depth.*unit"):
        make_task("depth", ["near"])
