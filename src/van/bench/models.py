"""Whole networks, each on every way to run it, side by side in one run.

The answers of a row are first compared with those of the same weights in float64; a row that is wrong
gets no speed. Then every row takes its turn in every round.
"""

import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from van.bench.costs import count
from van.bench.machine import Machine, same_terms, survey, synchroniser
from van.bench.memory import with_peak_growth
from van.bench.networks import NETWORKS, build
from van.bench.rows import Case, Outcome, Row
from van.bench.subject import Subject
from van.bench.timing import Timing, interleaved
from van.bench.training import TRAINED, Trainee
from van.bench.ways import prepare
from van.errors import MissingExtra
from van.ops.memory import keep_freed_memory

TOLERANCE = 1e-4
"""Largest error of logits against float64, relative to the largest: float32 through a whole network."""
PARTS = {"latency": "one picture", "batch": "the batch", "step": "a training step"}
"""What is timed of a case."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Terms:
    """How a table is measured.

    ``threads`` holds for PyTorch, this package's C++ code, ONNX Runtime and OpenVINO. ``latency`` asks
    for single pictures, too, ``train`` for training steps on the ways that can.
    """

    device: torch.device = torch.device("cpu")
    threads: int = 1
    rounds: int = 5
    latency: bool = True
    train: bool = False
    say: Callable[[str], object] = lambda _: None
    """Told what is going on."""


def measure(cases: Sequence[Case], terms: Terms) -> tuple[Machine, list[Row]]:
    """Prepare and check every case, then time them in turn; one that fails says why, and the others go on.

    All that is measured is held in memory at once, and the process keeps freed memory from then on.
    """
    with same_terms(threads=terms.threads), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        terms.say("how fast this machine computes and copies at all")
        machine = survey(terms.device, threads=terms.threads)
        prepared = list(_prepare_all(cases, terms, Path(folder)))
        keep_freed_memory()  # as the verbs of this package do; here for all alike
        timings = {part: _time(part, prepared, terms) for part in PARTS}
    return machine, [item.finished(machine, timings) for item in prepared]


class _Prepared:
    """A row before it is timed, and the calls to time for it, by part."""

    def __init__(self, case: Case) -> None:
        self.row = Row(case=case)
        self.calls: dict[str, Callable[[], object]] = {}

    def end(self, outcome: Outcome, reason: str) -> None:
        """No speed is told of this row, and this is why."""
        self.row = dataclasses.replace(self.row, outcome=outcome, reason=reason)
        self.calls.clear()

    def attempt(self, part: str) -> None:
        """Run one of the calls; what it raises ends the row, not the table."""
        if part in self.calls:
            try:
                self.calls[part]()
            except Exception as error:  # a runtime may raise anything
                self.end("failed", _in_a_line(error))

    def finished(self, machine: Machine, timings: Mapping[str, Mapping[Case, Timing]]) -> Row:
        """The row with its times, if it is still right."""
        row = self.row
        if row.outcome != "measured" or row.cost is None:
            return row
        latency, batch, step = (timings[part].get(row.case) for part in PARTS)
        least_s = machine.least_s(macs=row.cost.macs, bytes_moved=row.cost.bytes_moved)
        share = None if batch is None else 1e3 * least_s / batch.median_ms
        return dataclasses.replace(row, latency=latency, batch=batch, step=step, roofline_share=share)


def _prepare_all(cases: Sequence[Case], terms: Terms, folder: Path) -> Iterator[_Prepared]:
    """Cases of one network that follow one another share it."""
    most = max((case.batch_size for case in cases), default=1)

    @functools.lru_cache(maxsize=1)
    def subject(network: str, size_px: int, kernel_size: int | None) -> Subject:
        return Subject(NETWORKS[network], size_px=size_px, kernel_size=kernel_size, pictures=most, folder=folder)

    for number, case in enumerate(cases, start=1):
        terms.say(f"preparing {number} of {len(cases)}: {describe(case)}")
        item = _Prepared(case)
        try:
            _prepare(item, subject(case.network, case.size_px, case.kernel_size), terms)
        except MissingExtra as error:
            item.end("not installed", str(error))
        except Exception as error:  # compilers and exporters raise anything
            item.end("failed", _in_a_line(error))
        if item.row.reason:
            terms.say(f"{describe(case)}: {item.row.outcome}: {item.row.reason}")
        yield item


def _prepare(item: _Prepared, subject: Subject, terms: Terms) -> None:
    case = item.row.case
    plan = functools.partial(build, subject.network, size_px=case.size_px, kernel_size=case.kernel_size, device="meta")
    item.row = dataclasses.replace(item.row, cost=count(plan, batch_size=case.batch_size, size_px=case.size_px))
    runner = prepare(case.way, subject, threads=terms.threads, device=terms.device)
    whole = runner(subject.pictures[: case.batch_size])
    logits, peak = with_peak_growth(whole, device=terms.device)
    errors = [subject.error(logits)]
    item.calls["batch"] = whole
    if terms.latency:
        single = whole if case.batch_size == 1 else runner(subject.pictures[:1])
        errors.append(subject.error(single()))
        item.calls["latency"] = single
    error = _worst(errors)
    item.row = dataclasses.replace(item.row, error=error, peak_memory_bytes=peak)
    if not error <= TOLERANCE:
        item.end("wrong", f"its answer is off by {error:.1e} of the largest logit, so no speed is told")
    elif terms.train and case.way in TRAINED:
        _prepare_training(item, subject, terms)


def _prepare_training(item: _Prepared, subject: Subject, terms: Terms) -> None:
    trainee = Trainee(item.row.case.way, subject, terms.device)
    error = trainee.gradient_error()
    item.row = dataclasses.replace(item.row, gradient_error=error)
    if error <= subject.network.gradient_tolerance:
        item.calls["step"] = trainee.step(item.row.case.batch_size)
    else:
        item.end("wrong", f"its gradients are off by {error:.1e} of their length, so no speed is told")


def _time(part: str, prepared: Sequence[_Prepared], terms: Terms) -> dict[Case, Timing]:
    calls = {item.row.case: functools.partial(item.attempt, part) for item in prepared if part in item.calls}
    if not calls:
        return {}
    return interleaved(
        calls,
        rounds=terms.rounds,
        warm_up=1,
        untimed=1 if part == "latency" else 0,
        synchronise=synchroniser(terms.device),
        on_round=lambda number: terms.say(f"timing {PARTS[part]}, {len(calls)} rows: round {number} of {terms.rounds}"),
    )


def describe(case: Case) -> str:
    """A case in words."""
    kernel = "" if case.kernel_size is None else f", kernel {case.kernel_size}"
    return f"{case.network} {case.way}, batch {case.batch_size}, {case.size_px} px{kernel}"


def _worst(errors: Sequence[float]) -> float:
    return max(errors, key=lambda error: math.inf if math.isnan(error) else error)


def _in_a_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].strip()[:300]}"
