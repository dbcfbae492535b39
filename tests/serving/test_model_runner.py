"""A worker's prediction is the same whether the worker, the front end or the client has preprocessed the image."""

from pathlib import Path

import pytest
import torch

from explain.small_models import image
from van.preprocess import CenterCropPreprocess
from van.serving.messages import InferenceRequest
from van.serving.model_runner import ModelRunner

IMAGES = [image(90, 70, seed=1), image(61, 97, seed=2), image(64, 64, seed=3)]


@pytest.fixture(scope="module")
def runner(classifier_file) -> ModelRunner:
    return ModelRunner("small", str(classifier_file), device="cpu")


def run(runner: ModelRunner, kind: str, images, payloads, **more):
    options = {"top": 4} if runner.card.task == "classify" else {"min_score": 0.05}
    requests = [
        InferenceRequest(kind=kind, model="m", name="p", width=one.width, height=one.height, options=options, **more)
        for one in images
    ]
    return runner.run(requests, payloads)


def crop_rule(runner: ModelRunner) -> CenterCropPreprocess:
    assert isinstance(runner.predictor.preprocess, CenterCropPreprocess)
    return runner.predictor.preprocess


def test_a_crop_has_bit_for_bit_the_prediction_of_the_whole_image(runner):
    rule = crop_rule(runner)
    crops = [rule.crop(whole) for whole in IMAGES]
    from_images = run(runner, "predict", IMAGES, [whole.tobytes() for whole in IMAGES])
    from_crops = run(runner, "crop", crops, [crop.tobytes() for crop in crops], preprocess=rule.to_dict())
    assert [response.result for response in from_crops] == [response.result for response in from_images]
    assert len({str(response.result) for response in from_images}) == len(IMAGES)  # no two are the same
    assert {response.batch_size for response in from_crops} == {len(IMAGES)}


def test_a_crop_by_another_rule_is_rejected(runner):
    rule = crop_rule(runner)
    crops = [rule.crop(whole) for whole in IMAGES]
    other = {**rule.to_dict(), "interpolation": "bilinear"}
    responses = run(runner, "crop", crops, [crop.tobytes() for crop in crops], preprocess=other)
    assert [response.error_kind for response in responses] == ["stale_crop"] * len(IMAGES)
    assert all(response.result is None for response in responses)


@pytest.mark.parametrize("file", ["classifier_file", "detector_file"])
def test_tensors_run_through_the_fused_network(file, request):
    path: Path = request.getfixturevalue(file)
    runner = ModelRunner("m", str(path), device="cpu")
    whole = IMAGES[2]  # 64x64, which the detector does not resize

    def fail(*arguments: object) -> None:
        raise AssertionError("the unfused network was called")

    from_images = run(runner, "predict", [whole] * 2, [whole.tobytes()] * 2)
    tensor = runner.predictor.preprocess(whole)
    sides = [image(tensor.shape[2], tensor.shape[1])] * 2
    for module in runner.predictor.model.network.modules():
        module.register_forward_pre_hook(fail)
    from_tensors = run(runner, "tensor", sides, [tensor.contiguous().numpy().tobytes()] * 2)
    assert [response.error for response in from_tensors] == ["", ""]
    if tensor.shape[1:] == (whole.height, whole.width):  # the boxes have the same coordinates
        assert [response.result for response in from_tensors] == [response.result for response in from_images]
    with pytest.raises(AssertionError, match="unfused"), torch.inference_mode():  # negative control
        runner.predictor.model.network(tensor[None])
