"""The page as HTML: self-contained, escaped, and values formatted."""

import dataclasses
import re

import numpy as np
import pytest

from report.synthetic_run import HOSTILE
from van.report.data import ReportOptions, collect_report_data
from van.report.errors import format_percent
from van.report.formats import METRICS, format_compact, format_count, format_metric, format_setting, metric_name
from van.report.page import render
from van.tasks.detection import METRIC_NAMES

THIN = "\u202f"


@pytest.fixture(scope="module")
def data(finished):
    return collect_report_data(finished, ReportOptions(device="cpu", num_errors=3))


def test_the_page_is_deterministic_and_has_no_external_resources(data):
    page = render(data, version="1")
    assert page == render(data, version="1")
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert "url(" not in page
    assert "@import" not in page
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert len(re.findall(r'src="data:image/webp;base64,', page)) == 9


def test_markup_in_names_and_settings_is_escaped(data):
    bad = "</style></title><script>alert('1')</script>\"'&\u202e\x00"
    recipe = {**data.recipe, "model": bad, bad: bad, "init_from": bad}
    hostile = dataclasses.replace(data, recipe=recipe, versions={bad: bad}, missing=(bad,), notes=(bad,))
    page = render(hostile, version="1")
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;1&#39;)" in page
    assert not {"\u202e", "\x00"} & set(page)
    assert page.count("</style>") == page.count("</title>") == 1
    assert HOSTILE[0] not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_non_latin_text_is_kept_and_surrogates_are_replaced(data):
    page = render(dataclasses.replace(data, missing=("می\u200cروم 分類 \udc80",)), version="1")
    assert "می\u200cروم 分類  " in page
    page.encode("utf-8")


def test_every_class_has_a_row_and_many_classes_are_folded(data):
    class_names = tuple(f"class {number}" for number in range(300))
    per_class = {label: {"samples": 1, "top1": number / 300} for number, label in enumerate(class_names)}
    details = {**data.details, "per_class": per_class, "confusion": np.ones((300, 300), int)}
    evaluation = dataclasses.replace(data.evaluation, details=details)
    model = data.model.replace(class_names=class_names)
    page = render(dataclasses.replace(data, evaluation=evaluation, model=model), version="1")
    assert "280 more classes" in page
    rows = re.findall(r"<bdi>class (\d+)</bdi></th>\s*<td class=\"bar\"", page)
    assert rows == [str(number) for number in range(300)]  # lowest accuracy first
    assert 'class="matrix"' not in page  # only the largest cells are listed
    assert "Most frequent confusions" in page


def test_values_are_formatted():
    percentages = {0.5: "50.0", 1.0: "100.0", 0.99996: "99.9", 0.0: "0.0", 1e-5: "0.0"}  # not rounded to 100
    assert {value: format_percent(value) for value in percentages} == {
        value: f"{text}{THIN}%" for value, text in percentages.items()
    }
    assert format_percent(None) == format_percent(float("nan")) == "–"
    assert format_metric("top1", 0.98765) == f"98.77{THIN}%"
    assert format_metric("loss", 1.23456) == "1.235"
    assert format_count(864_224_000) == f"864{THIN}M"
    assert format_count(4_105_800) == f"4.11{THIN}M"
    assert format_count(12) == "12"
    assert [format_compact(n) for n in (0, 7, 999, 1000, 9949, 9950, 999_499, 1_486_912, 25_000_000)] == [
        "", "7", "999", "1.0k", "9.9k", "10k", "999k", "1.5M", "25M",
    ]  # fmt: skip
    assert format_setting([0.6, 1.0]) == "0.6, 1"
    assert (format_setting(None), format_setting(False), format_setting({"a": 1e-4})) == ("none", "no", "a 0.0001")


def test_every_coco_metric_has_a_title_and_a_description():
    for kind in ("box", "mask"):
        for name in METRIC_NAMES:
            assert metric_name(f"{kind}_{name}").description, name
    assert metric_name("new_metric").title == "new metric"
    assert all(name.title and name.description for name in METRICS.values())
