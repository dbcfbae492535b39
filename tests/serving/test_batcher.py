"""Batching: by kind and model, when full or due, the oldest queue first, without withdrawn requests."""

import asyncio
import contextlib
import time

import pytest

from van.serving.api_error import ApiError
from van.serving.batcher import Batcher
from van.serving.messages import InferenceRequest, RequestKind
from van.serving.quota import Quota


def make_request(name: str, *, model: str = "a", kind: RequestKind = "predict", side: int = 8) -> InferenceRequest:
    return InferenceRequest(kind=kind, model=model, name=name, width=side, height=side)


def names(batch: list) -> str:
    return "".join(pending.request.name for pending in batch)


def make_batcher(max_batch: int = 4, max_wait_s: float = 0.05) -> Batcher:
    return Batcher(lambda request: max_batch, max_wait_s=max_wait_s)


def test_a_full_batch_is_due_at_once_and_a_partial_one_after_the_wait_time():
    async def run() -> None:
        batcher = make_batcher(max_wait_s=0.1)
        for name in "abcdef":
            batcher.put(make_request(name), b"")
        start = time.monotonic()
        assert names(await batcher.next_batch()) == "abcd"
        assert time.monotonic() - start < 0.05
        assert names(await batcher.next_batch()) == "ef"
        assert time.monotonic() - start >= 0.09

    asyncio.run(run())


def test_a_batch_that_becomes_full_while_waiting_is_due_at_once():
    async def run() -> None:
        batcher = make_batcher(max_batch=2, max_wait_s=30)
        batcher.put(make_request("a"), b"")
        batch = asyncio.create_task(batcher.next_batch())
        await asyncio.sleep(0.02)
        assert not batch.done()
        batcher.put(make_request("b"), b"")
        async with asyncio.timeout(1):
            assert names(await batch) == "ab"

    asyncio.run(run())


def test_models_kinds_and_tensor_sizes_are_separate_batches_and_the_oldest_goes_first():
    async def run() -> None:
        batcher = make_batcher(max_wait_s=0)
        batcher.put(make_request("a", model="x"), b"")
        batcher.put(make_request("b", model="y"), b"")
        batcher.put(make_request("c", model="x", kind="cam"), b"")
        batcher.put(make_request("d", model="x", kind="tensor", side=8), b"")
        batcher.put(make_request("e", model="x", kind="tensor", side=9), b"")
        batcher.put(make_request("f", model="x", side=9), b"")  # whole images of any size share a batch
        assert [names(await batcher.next_batch()) for _ in range(5)] == ["af", "b", "c", "d", "e"]

    asyncio.run(run())


def test_withdrawn_requests_are_not_in_a_batch():
    async def run() -> None:
        batcher = make_batcher(max_batch=3, max_wait_s=0.01)
        futures = [batcher.put(make_request(name), b"") for name in "abcd"]
        futures[0].cancel()
        futures[2].cancel()
        assert names(await batcher.next_batch()) == "bd"
        assert batcher.depth("a") == 0

    asyncio.run(run())


def test_a_requeued_batch_keeps_its_order_and_a_single_request_goes_first_and_alone():
    async def run() -> None:
        batcher = make_batcher(max_wait_s=0)
        for name in "abc":
            batcher.put(make_request(name), b"")
        batch = await batcher.next_batch()
        batcher.put(make_request("d"), b"")
        batcher.requeue(batch[1:])
        batcher.requeue_single(batch[0])
        assert batcher.depth("a") == 4
        assert [names(await batcher.next_batch()) for _ in range(2)] == ["a", "bcd"]

    asyncio.run(run())


def test_a_cancelled_call_takes_no_requests():
    async def run() -> None:
        batcher = make_batcher(max_wait_s=30, max_batch=1)
        batch = asyncio.create_task(batcher.next_batch())
        await asyncio.sleep(0)
        batcher.put(make_request("a"), b"")
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        assert names(await batcher.next_batch()) == "a"

    asyncio.run(run())


def test_each_of_several_waiting_workers_gets_a_batch():
    async def run() -> None:
        batcher = make_batcher(max_batch=1, max_wait_s=30)
        workers = [asyncio.create_task(batcher.next_batch()) for _ in range(3)]
        await asyncio.sleep(0)
        for name in "abc":
            batcher.put(make_request(name), b"")
        async with asyncio.timeout(1):
            assert sorted([names(await worker) for worker in workers]) == ["a", "b", "c"]

    asyncio.run(run())


def test_fail_all_fails_every_queued_request():
    async def run() -> None:
        batcher = make_batcher()
        futures = [batcher.put(make_request(name), b"") for name in "ab"]
        batcher.fail_all(ApiError(503, "shutting_down", "over"))
        for future in futures:
            with pytest.raises(ApiError, match="over"):
                await future

    asyncio.run(run())


def test_a_quota_releases_reserved_units_after_any_exception():
    in_use: list[int] = []
    quota = Quota(10, code="full", resource="memory", on_change=in_use.append)
    with quota.reserve(7), pytest.raises(ApiError, match=r"memory: 7 of 10 .* 4 "):
        quota.acquire(4)
    with contextlib.suppress(KeyError), quota.reserve(3):
        raise KeyError
    quota.acquire(10)
    assert in_use == [7, 0, 3, 0, 10]
