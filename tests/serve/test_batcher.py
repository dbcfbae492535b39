"""How batches are made: by kind and model, full or due, the longest waiting first, without what nobody wants."""

import asyncio
import contextlib
import time

import pytest

from van.serve.batcher import Batcher
from van.serve.budget import Budget
from van.serve.questions import Kind, Question
from van.serve.refusals import Refused


def question(name: str, *, model: str = "a", kind: Kind = "predict", side: int = 8) -> Question:
    return Question(kind=kind, model=model, name=name, width=side, height=side)


def names(batch: list) -> str:
    return "".join(waiting.question.name for waiting in batch)


def batcher(max_batch: int = 4, max_wait_s: float = 0.05) -> Batcher:
    return Batcher(lambda question: max_batch, max_wait_s=max_wait_s)


def test_a_full_batch_does_not_wait_and_a_short_one_waits_its_time():
    async def run() -> None:
        waits = batcher(max_wait_s=0.1)
        for name in "abcdef":
            waits.put(question(name), b"")
        start = time.monotonic()
        assert names(await waits.next_batch()) == "abcd"
        assert time.monotonic() - start < 0.05
        assert names(await waits.next_batch()) == "ef"
        assert time.monotonic() - start >= 0.09

    asyncio.run(run())


def test_a_batch_that_becomes_full_meanwhile_goes_at_once():
    async def run() -> None:
        waits = batcher(max_batch=2, max_wait_s=30)
        waits.put(question("a"), b"")
        taken = asyncio.create_task(waits.next_batch())
        await asyncio.sleep(0.02)
        assert not taken.done()
        waits.put(question("b"), b"")
        async with asyncio.timeout(1):
            assert names(await taken) == "ab"

    asyncio.run(run())


def test_models_kinds_and_sizes_of_tensors_do_not_mix_and_the_first_come_goes_first():
    async def run() -> None:
        waits = batcher(max_wait_s=0)
        waits.put(question("a", model="x"), b"")
        waits.put(question("b", model="y"), b"")
        waits.put(question("c", model="x", kind="explain"), b"")
        waits.put(question("d", model="x", kind="tensor", side=8), b"")
        waits.put(question("e", model="x", kind="tensor", side=9), b"")
        waits.put(question("f", model="x", side=9), b"")  # pictures of any size go together
        assert [names(await waits.next_batch()) for _ in range(5)] == ["af", "b", "c", "d", "e"]

    asyncio.run(run())


def test_what_was_withdrawn_is_not_in_a_batch():
    async def run() -> None:
        waits = batcher(max_batch=3, max_wait_s=0.01)
        answers = [waits.put(question(name), b"") for name in "abcd"]
        answers[0].cancel()
        answers[2].cancel()
        assert names(await waits.next_batch()) == "bd"
        assert waits.depth("a") == 0

    asyncio.run(run())


def test_a_batch_given_back_comes_again_in_its_order_and_a_suspect_alone_and_first():
    async def run() -> None:
        waits = batcher(max_wait_s=0)
        for name in "abc":
            waits.put(question(name), b"")
        batch = await waits.next_batch()
        waits.put(question("d"), b"")
        waits.give_back(batch[1:])
        waits.give_back_alone(batch[0])
        assert waits.depth("a") == 4
        assert [names(await waits.next_batch()) for _ in range(2)] == ["a", "bcd"]

    asyncio.run(run())


def test_a_cancelled_wait_takes_nothing():
    async def run() -> None:
        waits = batcher(max_wait_s=30, max_batch=1)
        taken = asyncio.create_task(waits.next_batch())
        await asyncio.sleep(0)
        waits.put(question("a"), b"")
        taken.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taken
        assert names(await waits.next_batch()) == "a"

    asyncio.run(run())


def test_every_one_of_several_waiting_workers_gets_a_batch():
    async def run() -> None:
        waits = batcher(max_batch=1, max_wait_s=30)
        workers = [asyncio.create_task(waits.next_batch()) for _ in range(3)]
        await asyncio.sleep(0)
        for name in "abc":
            waits.put(question(name), b"")
        async with asyncio.timeout(1):
            assert sorted([names(await worker) for worker in workers]) == ["a", "b", "c"]

    asyncio.run(run())


def test_giving_up_refuses_all_that_waits():
    async def run() -> None:
        waits = batcher()
        answers = [waits.put(question(name), b"") for name in "ab"]
        waits.fail_all(Refused(503, "stopping", "over"))
        for answer in answers:
            with pytest.raises(Refused, match="over"):
                await answer

    asyncio.run(run())


def test_a_budget_gives_back_what_was_taken_whatever_happens():
    seen: list[int] = []
    budget = Budget(10, code="full", what="the room", on_change=seen.append)
    with budget.taken(7), pytest.raises(Refused, match="the room: 7 of 10 are taken and 4 more are needed"):
        budget.take(4)
    with contextlib.suppress(KeyError), budget.taken(3):
        raise KeyError
    budget.take(10)
    assert seen == [7, 0, 3, 0, 10]
