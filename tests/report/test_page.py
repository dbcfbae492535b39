"""The page as text: everything inside it, everything escaped, and figures as they are read."""

import dataclasses
import re

import numpy as np
import pytest

from report.made_run import HOSTILE
from van.report.facts import Wanted, gather
from van.report.page import render
from van.report.tables import _compact
from van.report.words import METRICS, figure, large, metric_word, setting
from van.results.svg import share
from van.tasks.coco_metrics import FIGURES

THIN = "\u202f"


@pytest.fixture(scope="module")
def facts(finished):
    return gather(finished, Wanted(device="cpu", mistakes=3))


def test_the_page_asks_for_nothing_outside_itself(facts):
    page = render(facts, version="1")
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert "url(" not in page
    assert "@import" not in page
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert len(re.findall(r'src="data:image/webp;base64,', page)) == 9


def test_text_that_would_be_markup_is_escaped_wherever_it_comes_from(facts):
    bad = "</style></title><script>alert('1')</script>\"'&\u202e\x00"
    recipe = {**facts.recipe, "model": bad, bad: bad, "start": bad}
    hostile = dataclasses.replace(facts, recipe=recipe, versions={bad: bad}, gaps=(bad,), notes=(bad,))
    page = render(hostile, version="1")
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;1&#39;)" in page
    assert not {"\u202e", "\x00"} & set(page)
    assert page.count("</style>") == page.count("</title>") == 1
    assert HOSTILE[0] not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_the_same_facts_give_the_same_page(facts):
    assert render(facts, version="1") == render(facts, version="1")


def test_text_of_every_script_and_halves_of_characters_come_through(facts):
    page = render(dataclasses.replace(facts, gaps=("می\u200cروم 分類 \udc80",)), version="1")
    assert "می\u200cروم 分類  " in page
    page.encode("utf-8")


def test_every_class_has_a_row_and_hundreds_are_folded_away(facts):
    found = facts.measured.found
    labels = tuple(f"class {number}" for number in range(300))
    per_class = {label: {"samples": 1, "top1": number / 300} for number, label in enumerate(labels)}
    confusion = np.ones((300, 300), int)
    details = {**found.details, "per_class": per_class, "confusion": confusion}
    measured = dataclasses.replace(facts.measured, found=dataclasses.replace(found, details=details))
    network = dataclasses.replace(facts.network, loaded=dataclasses.replace(facts.network.loaded, labels=labels))
    page = render(dataclasses.replace(facts, measured=measured, network=network), version="1")
    assert "The other 280 classes" in page
    rows = re.findall(r"<bdi>class (\d+)</bdi></th>\s*<td class=\"bar\"", page)
    assert rows == [str(number) for number in range(300)]  # the worst first
    assert 'class="matrix"' not in page  # the largest of its cells are listed instead
    assert "Most frequent confusions" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "50.0"), (1.0, "100.0"), (0.99996, "99.9"), (0.0, "0.0"), (1e-5, "0.0"), (None, "–"), (float("nan"), "–")],
)
def test_only_what_is_whole_is_100_percent(value, text):
    assert share(value) == (text if text == "–" else f"{text}{THIN}%")


def test_figures_are_written_as_they_are_read():
    assert figure("top1", 0.98765) == f"98.77{THIN}%"
    assert figure("loss", 1.23456) == "1.235"
    assert large(864_224_000) == f"864{THIN}M"
    assert large(4_105_800) == f"4.11{THIN}M"
    assert large(12) == "12"
    assert [_compact(n) for n in (0, 7, 999, 1000, 9949, 9950, 999_499, 1_486_912, 25_000_000)] == [
        "", "7", "999", "1.0k", "9.9k", "10k", "999k", "1.5M", "25M",
    ]  # fmt: skip
    assert setting([0.6, 1.0]) == "0.6, 1"
    assert (setting(None), setting(False), setting({"a": 1e-4})) == ("none", "no", "a 0.0001")


def test_every_figure_of_coco_has_words():
    for kind in ("box", "mask"):
        for name in FIGURES:
            assert metric_word(f"{kind}_{name}").meaning, name
    assert metric_word("new_metric").title == "new metric"
    assert all(word.title and word.meaning for word in METRICS.values())
