"""The page in a browser: no requests, no scripts, no overflow, accessible structure and contrast."""

import dataclasses
import itertools

import pytest

from datasets.synthetic_annotated import dataset_root, write_dense_checkpoint, write_scenes
from report.synthetic_run import HOSTILE, write_run
from van.report.data import ReportOptions, collect_report_data
from van.report.page import render

VIEWS = [(360, False), (1280, True)]
NAMES = ("finished", "started", "instances")


@pytest.fixture(scope="module")
def pages(tmp_path_factory, finished, images):
    """The pages of a finished run, of a run without a checkpoint, and of an instance segmentation run."""
    folder = tmp_path_factory.mktemp("pages")
    quick = ReportOptions(device="cpu", num_errors=3, speed=False)
    started = write_run(folder / "started", data=images, class_names=None)
    scenes = write_scenes(folder / "scenes", train=1, validation=2)
    instances = write_run(folder / "instances", data=dataset_root(scenes, "instances"), class_names=None)
    write_dense_checkpoint(instances / "best.safetensors", "instances")
    for name, run in (("finished", finished), ("started", started), ("instances", instances)):
        data = collect_report_data(run, dataclasses.replace(quick, speed=name == "finished"))
        if name == "started":
            data = dataclasses.replace(data, notes=("<script>alert(1)</script>", "x" * 300))
        (folder / f"{name}.html").write_text(render(data, version="1"), encoding="utf-8")
    return folder


def overflowing_elements(opened):
    """Return elements that exceed the right edge of the page outside of scrollable regions."""
    return opened.run(
        """[...document.body.querySelectorAll("*")].filter(element => !element.closest(".scroll, .skip")
           && element.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
           .map(element => element.outerHTML.slice(0, 80))"""
    )


def test_the_page_makes_no_requests_logs_no_messages_and_does_not_overflow(browser_page, pages):
    for name, (width, dark) in itertools.product(NAMES, VIEWS):
        opened = browser_page(pages / f"{name}.html", width_px=width, dark=dark)
        opened.run("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert (opened.requests, opened.messages) == ([], []), (name, width, dark)
        assert opened.run("document.documentElement.scrollWidth") == width
        assert overflowing_elements(opened) == [], name
        widths = opened.run("[...document.images].map(image => image.naturalWidth)")
        assert min(widths, default=1) > 0
        assert bool(widths) is (name != "started")


def test_the_content_security_policy_blocks_scripts_and_requests(browser_page, pages, tmp_path):
    """Negative control of the test above: violations are detected, and without the policy they happen."""
    page = (pages / "started.html").read_text(encoding="utf-8")
    bad = "<img src='http://localhost:9/x.png'><p style='width: 2000px'>wide</p><script>alert('it ran')</script></body>"
    page = page.replace("</body>", bad)
    (tmp_path / "guarded.html").write_text(page)
    (tmp_path / "open.html").write_text(page.replace("Content-Security-Policy", "x-nothing"))
    guarded = browser_page(tmp_path / "guarded.html", width_px=360, decode=False)
    assert len([message for message in guarded.messages if "Content Security Policy" in message]) == 2
    assert "it ran" not in guarded.messages
    assert guarded.run("document.documentElement.scrollWidth") > 360
    assert len(overflowing_elements(guarded)) > 0
    unguarded = browser_page(tmp_path / "open.html", width_px=360, decode=False)
    assert "it ran" in unguarded.messages
    assert unguarded.requests == ["http://localhost:9/x.png"]


def test_class_names_are_rendered_as_text(browser_page, pages):
    opened = browser_page(pages / "finished.html")
    shown = opened.run("document.body.innerText")
    assert all(label in shown for label in HOSTILE)
    assert opened.run("document.querySelectorAll('img[src=x], script').length") == 0
    started = browser_page(pages / "started.html")
    assert "<script>alert(1)</script>" in started.run("document.body.innerText")
    assert started.messages == []


def test_headings_landmarks_and_alternative_texts_are_complete(browser_page, pages):
    for name in NAMES:
        opened = browser_page(pages / f"{name}.html")
        levels = opened.run("[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(one => Number(one.tagName[1]))")
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        assert opened.run("[...document.images].every(one => one.alt.length > 10)")
        assert opened.run("document.querySelectorAll('main, header, nav, footer').length") == 4
        assert opened.run("[...document.querySelectorAll('nav a')].every(one => document.querySelector(one.hash))")
        unnamed = """[...document.querySelectorAll("svg, [role=region]")].filter(one => !(one.getAttribute("aria-label")
            || (one.getAttribute("aria-labelledby") || "").split(" ").every(id => document.getElementById(id)
            && document.getElementById(id).textContent.trim())))"""
        assert opened.run(f"{unnamed}.length") == 0
        names = opened.run("[...document.querySelectorAll('[id]')].map(one => one.id)")
        assert len(set(names)) == len(names)


def test_the_page_can_be_used_with_the_keyboard(browser_page, pages):
    opened = browser_page(pages / "finished.html")
    opened.page.keyboard.press("Tab")
    assert opened.run("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(40):
        opened.page.keyboard.press("Tab")
        reached.add(
            opened.run("document.activeElement.tagName + ' ' + (document.activeElement.className || '')").strip()
        )
    assert {"A", "SUMMARY", "DIV scroll"} <= reached
    opened.run("document.querySelector('#configuration details:not([open]) summary').focus()")
    opened.page.keyboard.press("Enter")
    assert opened.run("document.activeElement.parentElement.open")


def luminance_of(color):
    """Return the relative luminance of a computed color: rgb(1, 2, 3), or color(srgb 0.1 0.2 0.3) after color-mix."""
    mixed = color.startswith("color(srgb")
    parts = color[color.index("(") + 1 : -1].removeprefix("srgb").replace(",", " ").split()[:3]
    channels = [float(part) / (1 if mixed else 255) for part in parts]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_contrast_is_at_least_4_5_in_light_and_dark_mode(browser_page, pages):
    """WCAG 2.1 requires 4.5 to 1."""
    for dark in (False, True):
        check_contrast(browser_page(pages / "finished.html", dark=dark), dark)


def check_contrast(opened, dark):
    background = luminance_of(opened.run("getComputedStyle(document.body).backgroundColor"))
    assert (background < 0.1) is dark
    for selector in ("body", ".soft", "nav a", "summary", "figcaption", "thead th", ".chart text"):
        key = "fill" if "text" in selector else "color"
        text = luminance_of(opened.run(f"getComputedStyle(document.querySelector({selector!r})).{key}"))
        low, high = sorted((background, text))
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector
    cells = "[...document.querySelectorAll('.matrix tbody td')].map(cell => getComputedStyle(cell))"
    for text, cell in opened.run(f"{cells}.map(style => [style.color, style.backgroundColor])"):
        low, high = sorted((luminance_of(text), luminance_of(cell)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, cell


def test_a_printed_page_shows_folded_details(browser_page, pages):
    opened = browser_page(pages / "finished.html", dark=True)
    shown = "document.querySelector('#configuration details:not([open]) dl').checkVisibility()"
    assert not opened.run(shown)
    opened.page.emulate_media(media="print")
    assert opened.run(shown)
    assert luminance_of(opened.run("getComputedStyle(document.body).backgroundColor")) == 1
