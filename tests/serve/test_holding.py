"""What a worker answers does not depend on who prepared the picture: itself, the front, or the client."""

from pathlib import Path

import pytest
import torch

from explain.small import picture
from van.preprocess import Preprocess
from van.serve.holding import Holding
from van.serve.questions import Question

PICTURES = [picture(90, 70, seed=1), picture(61, 97, seed=2), picture(64, 64, seed=3)]


@pytest.fixture(scope="module")
def holding(small_file) -> Holding:
    return Holding("small", str(small_file), device="cpu")


def asked(holding: Holding, kind: str, pictures, payloads, **more):
    options = {"top": 4} if holding.card.task == "classify" else {"min_score": 0.05}
    questions = [
        Question(kind=kind, model="m", name="p", width=seen.width, height=seen.height, options=options, **more)
        for seen in pictures
    ]
    return holding.answer(questions, payloads)


def rule_of(holding: Holding) -> Preprocess:
    assert isinstance(holding.predictor.preprocess, Preprocess)
    return holding.predictor.preprocess


def test_a_crop_is_answered_bit_for_bit_as_the_whole_picture(holding):
    rule = rule_of(holding)
    crops = [rule.crop(seen) for seen in PICTURES]
    whole = asked(holding, "predict", PICTURES, [seen.tobytes() for seen in PICTURES])
    cropped = asked(holding, "crop", crops, [seen.tobytes() for seen in crops], rule=rule.to_dict())
    assert [reply.answer for reply in cropped] == [reply.answer for reply in whole]
    assert len({str(reply.answer) for reply in whole}) == len(PICTURES)  # none is another's
    assert {reply.batch for reply in cropped} == {len(PICTURES)}


def test_a_crop_by_another_rule_is_sent_back(holding):
    rule = rule_of(holding)
    crops = [rule.crop(seen) for seen in PICTURES]
    other = {**rule.to_dict(), "interpolation": "bilinear"}
    replies = asked(holding, "crop", crops, [seen.tobytes() for seen in crops], rule=other)
    assert [reply.fault for reply in replies] == ["stale"] * len(PICTURES)
    assert all(reply.answer is None for reply in replies)


@pytest.mark.parametrize("file", ["small_file", "things_file"])
def test_tensors_go_through_the_network_that_is_fused_for_speed(file, request):
    path: Path = request.getfixturevalue(file)
    holding = Holding("m", str(path), device="cpu")
    seen = PICTURES[2]  # of 64x64; the things' network sees it as it is

    def unfused(*given: object) -> None:
        raise AssertionError("the network was asked as it was loaded")

    pictures = asked(holding, "predict", [seen] * 2, [seen.tobytes()] * 2)
    tensor = holding.predictor.preprocess(seen)
    sides = [picture(tensor.shape[2], tensor.shape[1])] * 2
    for module in holding.predictor.model.modules():
        module.register_forward_pre_hook(unfused)
    tensors = asked(holding, "tensor", sides, [tensor.contiguous().numpy().tobytes()] * 2)
    assert [reply.error for reply in tensors] == ["", ""]
    if tensor.shape[1:] == (seen.height, seen.width):  # boxes then lie in the same picture
        assert [reply.answer for reply in tensors] == [reply.answer for reply in pictures]
    with pytest.raises(AssertionError, match="as it was loaded"), torch.inference_mode():  # the control
        holding.predictor.model(tensor[None])
