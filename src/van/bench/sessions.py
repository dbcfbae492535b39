"""The sessions that answer from one network, side by side in one run: PyTorch and what it is exported to.

The weights are random, so nothing is downloaded. A session is opened, compared with the network in plain PyTorch and
float32, and then all are timed in turn, one picture at a time. Shapes: pictures (N, 3, H, W), logits (N, 1000).
"""

import contextlib
import dataclasses
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from van.bench.machine import same_terms
from van.bench.memory import with_peak_growth
from van.bench.networks import NETWORKS, build
from van.errors import UsageError
from van.export import int8, openvino
from van.export.formats import FORMATS, open_session
from van.export.verify import made_pictures
from van.export.writing import ExportOptions
from van.models.deploy import fuse
from van.models.load import Loaded, imagenet_labels, in_channels_last
from van.ops import use_backend
from van.preprocess import Preprocess

SESSIONS = {
    "pytorch": "this package in PyTorch: fused, channels_last, its own operators",
    "onnxruntime": "an ONNX file on ONNX Runtime",
    "openvino": "an OpenVINO file, float32",
    "openvino-bf16": "the same, bfloat16 arithmetic, where the processor has it",
    "openvino-int8": "every layer of 8 bits, what is between in the faster of the two, calibrated on made-up pictures",
}
NOISY = 0.1
"""Share of the processor that others may use before times are called noisy."""
_COMPARED = 32
_ATTEMPTS = 3

Ask = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Terms:
    """How sessions are measured: pictures of ``size_px``, ``threads`` threads, each session timed ``rounds`` times.

    ``sessions`` are names in ``SESSIONS``. ``wait_s`` is how long to wait at most for a processor that others leave
    alone, before each attempt.
    """

    sessions: tuple[str, ...] = tuple(SESSIONS)
    threads: int = 2
    rounds: int = 100
    size_px: int = 224
    wait_s: float = 30.0
    say: Callable[[str], object] = lambda _: None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A session as measured; None where it is not to be had, for the ``reason``.

    Args:
        network, session: which.
        size_px: of the pictures.
        p50_ms, p99_ms: of one picture.
        images_per_s: one picture after the other.
        peak_memory_mb: by how much memory rose while the session was opened and answered once.
        difference: the largest from float32 PyTorch, as a share of the largest logit.
        agreement: share of pictures with PyTorch's best class.
        others_share: of the processor, while the times were taken.
        outcome: whether there are times; ``not here`` if a package or the processor's arithmetic is missing.
        reason: why there are none.
    """

    network: str
    session: str
    size_px: int
    p50_ms: float | None = None
    p99_ms: float | None = None
    images_per_s: float | None = None
    peak_memory_mb: float | None = None
    difference: float | None = None
    agreement: float | None = None
    others_share: float | None = None
    outcome: Literal["measured", "not here", "failed"] = "measured"
    reason: str = ""

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON and CSV."""
        return dataclasses.asdict(self)


def measure(networks: Sequence[str], terms: Terms) -> list[Row]:
    """Every session of every network.

    Raises:
        UsageError: there is no network or no session of that name, or the network is no VAN.
    """
    strange = [session for session in terms.sessions if session not in SESSIONS]
    if strange:
        raise UsageError(f"there is no session {', '.join(strange)}; known: {', '.join(SESSIONS)}")
    unknown = [name for name in networks if name not in NETWORKS or not NETWORKS[name].is_van]
    if unknown:
        known = ", ".join(name for name, network in NETWORKS.items() if network.is_van)
        raise UsageError(f"there is no VAN {', '.join(unknown)}; known: {known}")
    rows: list[Row] = []
    with same_terms(threads=terms.threads):
        for name in networks:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                rows += _of_network(name, terms, Path(folder))
    return rows


def table_of(rows: Sequence[Row], machine: str, threads: int) -> str:
    """The rows as text; a dash is what was not measured."""
    columns = (
        ("p50 ms", "p50_ms", 9, ".2f"), ("p99 ms", "p99_ms", 9, ".2f"), ("img/s", "images_per_s", 8, ".1f"),
        ("MB", "peak_memory_mb", 8, ".0f"), ("error", "difference", 10, ".1e"), ("agree", "agreement", 8, ".1%"),
        ("others", "others_share", 8, ".0%"),
    )  # fmt: skip
    head = f"{'network':<10}{'session':<16}" + "".join(f"{title:>{width}}" for title, _, width, _ in columns)
    lines = [f"{machine}, {threads} thread{'' if threads == 1 else 's'}, one picture at a time", "", head]
    for row in rows:
        record = row.record()
        line = f"{row.network:<10}{row.session:<16}"
        for _, entry, width, form in columns:
            line += f"{'-' if record[entry] is None else format(record[entry], form):>{width}}"
        lines.append(line + (f"  {row.reason}" if row.reason else ""))
    if any(row.others_share is not None and row.others_share > NOISY for row in rows):
        lines.append(
            f"noisy: others used more than {NOISY:.0%} of the processor meanwhile (column others); run it again"
        )
    return "\n".join(lines)


def _of_network(name: str, terms: Terms, folder: Path) -> list[Row]:
    loaded = Loaded(
        model=build(NETWORKS[name], size_px=terms.size_px),
        name=name,
        options={},
        task="classify",
        labels=imagenet_labels(1000),
        preprocess=Preprocess(size_px=terms.size_px),
    )
    pictures = torch.stack([loaded.preprocess(picture) for picture in made_pictures(_COMPARED)])
    with torch.inference_mode(), use_backend("reference"):
        right = torch.cat([loaded.model(picture[None]) for picture in pictures])
    rows: dict[str, Row] = {}
    asked: dict[str, Ask] = {}
    for session in terms.sessions:
        terms.say(f"opening {name} {session}")
        rows[session] = Row(network=name, session=session, size_px=terms.size_px)
        try:
            opener = _opener(session, loaded, folder, terms)
            first = functools.partial(_opened, opener, pictures[:1])
            ask, grown = with_peak_growth(first, device=torch.device("cpu"))
            rows[session] = _compared(rows[session], ask, pictures, right, grown)
            asked[session] = ask
        except UsageError as error:  # MissingExtra among them
            rows[session] = dataclasses.replace(rows[session], outcome="not here", reason=str(error))
        except Exception as error:  # runtimes raise anything
            told = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"
            rows[session] = dataclasses.replace(rows[session], outcome="failed", reason=told)
    times, others = ({}, None) if not asked else _quietest(asked, pictures[:1], terms)
    return [_timed(row, times.get(session), others) for session, row in rows.items()]


def _opener(session: str, loaded: Loaded, folder: Path, terms: Terms) -> Callable[[], Ask]:
    """Write what the session answers from; what comes back opens it."""
    if session == "pytorch":
        return lambda: _in_pytorch(fuse(loaded.model))
    if session == "openvino-bf16" and not openvino.has_bfloat16():
        raise UsageError("this processor has no bfloat16 arithmetic")
    kind = "onnx" if session == "onnxruntime" else "openvino"
    path = folder / f"{session}{FORMATS[kind].suffix}"
    if session == "openvino-int8":
        int8.write(
            loaded, path, options=ExportOptions(), format_=FORMATS[kind], pictures=made_pictures(_COMPARED),
            max_loss=1.0, threads=terms.threads, rounds=5, only=(int8.EVERYTHING,), say=lambda _: None,
        )  # fmt: skip
    else:
        FORMATS[kind].write(loaded, path, options=ExportOptions())
    if session == "openvino-bf16":
        return lambda: openvino.open_session(path, threads=terms.threads, arithmetic="bfloat16")
    return lambda: open_session(path, threads=terms.threads)


def _in_pytorch(network: nn.Module) -> Ask:
    network = in_channels_last(network, torch.device("cpu"))

    def ask(pictures: Tensor) -> Tensor:
        with torch.inference_mode():
            return network(pictures.contiguous(memory_format=torch.channels_last))

    return ask


def _opened(opener: Callable[[], Ask], picture: Tensor) -> Ask:
    ask = opener()
    ask(picture)
    return ask


def _compared(row: Row, ask: Ask, pictures: Tensor, right: Tensor, grown: int | None) -> Row:
    found = torch.cat([ask(picture[None]) for picture in pictures])
    return dataclasses.replace(
        row,
        difference=((found - right).abs().max() / right.abs().max()).item(),
        agreement=(found.argmax(1) == right.argmax(1)).float().mean().item(),
        peak_memory_mb=None if grown is None else grown / 1e6,
    )


def _quietest(asked: dict[str, Ask], picture: Tensor, terms: Terms) -> tuple[dict[str, list[float]], float | None]:
    """The times of the attempt during which others used the least of the processor, and their share of it."""
    best: tuple[dict[str, list[float]], float | None] | None = None
    for attempt in range(1, _ATTEMPTS + 1):
        _wait_for_quiet(terms)
        terms.say(f"timing {len(asked)} sessions in turn, {terms.rounds} rounds")
        with _watched() as watch:
            times = _times(asked, picture, terms.rounds)
        share = watch.others
        if best is None or (share is not None and best[1] is not None and share < best[1]):
            best = times, share
        if share is None or share <= NOISY:
            break
        terms.say(f"others used {share:.0%} of the processor meanwhile (attempt {attempt} of {_ATTEMPTS})")
    assert best is not None
    return best


def _times(asked: dict[str, Ask], picture: Tensor, rounds: int) -> dict[str, list[float]]:
    """Milliseconds; each session runs once before it is timed, which brings back its caches."""
    times: dict[str, list[float]] = {session: [] for session in asked}
    for turn in range(-3, rounds):
        for session, ask in asked.items():
            ask(picture)
            began = time.perf_counter()
            ask(picture)
            if turn >= 0:
                times[session].append((time.perf_counter() - began) * 1e3)
    return times


def _timed(row: Row, times: list[float] | None, others: float | None) -> Row:
    if not times:
        return row
    ordered = sorted(times)
    return dataclasses.replace(
        row,
        p50_ms=statistics.median(ordered),
        p99_ms=ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))],
        images_per_s=1e3 * len(ordered) / sum(ordered),
        others_share=others,
    )


class _Watch:
    """How much of the processor other processes used between entering and leaving; None where nobody counts."""

    others: float | None = None


@contextlib.contextmanager
def _watched() -> Any:
    watch, before, own, began = _Watch(), _busy_s(), time.process_time(), time.perf_counter()
    yield watch
    after, lasted = _busy_s(), time.perf_counter() - began
    if before is not None and after is not None:
        cores = after[1]
        watch.others = max(0.0, after[0] - before[0] - (time.process_time() - own)) / (lasted * cores)


def _busy_s() -> tuple[float, int] | None:
    """Seconds that all cores together have been at work, and how many they are."""
    try:
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, *_ = (int(word) for word in lines[0].split()[1:])
    cores = sum(line.startswith("cpu") for line in lines) - 1
    return (user + nice + system + irq + softirq) / 100, cores


def _wait_for_quiet(terms: Terms) -> None:
    until = time.perf_counter() + terms.wait_s
    told = False
    while time.perf_counter() < until:
        with _watched() as watch:
            time.sleep(min(1.0, terms.wait_s))
        if watch.others is None or watch.others <= NOISY:
            return
        if not told:
            terms.say(f"others use {watch.others:.0%} of the processor; waiting {terms.wait_s:.0f} s at most")
            told = True
