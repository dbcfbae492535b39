"""The page in a real browser: nothing is asked for, nothing runs, nothing sticks out, everything can be seen."""

import dataclasses
import itertools

import pytest

from data.made_marked import set_of, write_marked_checkpoint, write_scenes
from report.made_run import HOSTILE, write_run
from van.report.facts import Wanted, gather
from van.report.page import render

VIEWS = [(360, False), (1280, True)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory, finished, pictures):
    """A page of a finished run, one of a run that has only begun, and one of a run that outlines things."""
    folder = tmp_path_factory.mktemp("pages")
    quick = Wanted(device="cpu", mistakes=3, speed=False)
    begun = write_run(folder / "begun", data=pictures, labels=None)
    scenes = write_scenes(folder / "scenes", train=1, validation=2)
    outlines = write_run(folder / "outlines", data=set_of(scenes, "instances"), labels=None)
    write_marked_checkpoint(outlines / "best.safetensors", "instances")
    for name, run in (("finished", finished), ("begun", begun), ("outlines", outlines)):
        facts = gather(run, dataclasses.replace(quick, speed=name == "finished"))
        if name == "begun":
            facts = dataclasses.replace(facts, notes=("<script>alert(1)</script>", "x" * 300))
        (folder / f"{name}.html").write_text(render(facts, version="1"), encoding="utf-8")
    return folder


def wide_things(opened):
    """What reaches over the page's right edge without lying in something that scrolls."""
    return opened.run(
        """[...document.body.querySelectorAll("*")].filter(element => !element.closest(".scroll, .skip")
           && element.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
           .map(element => element.outerHTML.slice(0, 80))"""
    )


@pytest.mark.parametrize("name", ["finished", "begun", "outlines"])
def test_nothing_is_asked_for_nothing_complains_and_nothing_sticks_out(browser_page, pages, name):
    for width, dark in VIEWS:
        opened = browser_page(pages / f"{name}.html", width_px=width, dark=dark)
        opened.run("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert (opened.requests, opened.messages) == ([], []), (width, dark)
        assert opened.run("document.documentElement.scrollWidth") == width
        assert wide_things(opened) == []
        widths = opened.run("[...document.images].map(image => image.naturalWidth)")
        assert min(widths, default=1) > 0
        assert bool(widths) is (name != "begun")


def test_the_policy_of_the_page_holds_off_what_would_get_in(browser_page, pages, tmp_path):
    """The control of the test above: what it looks for is seen, and without the policy it would happen."""
    page = (pages / "begun.html").read_text(encoding="utf-8")
    bad = "<img src='http://localhost:9/x.png'><p style='width: 2000px'>wide</p><script>alert('it ran')</script></body>"
    page = page.replace("</body>", bad)
    (tmp_path / "guarded.html").write_text(page)
    (tmp_path / "open.html").write_text(page.replace("Content-Security-Policy", "x-nothing"))
    guarded = browser_page(tmp_path / "guarded.html", width_px=360, decode=False)
    assert len([message for message in guarded.messages if "Content Security Policy" in message]) == 2
    assert "it ran" not in guarded.messages
    assert guarded.run("document.documentElement.scrollWidth") > 360
    assert len(wide_things(guarded)) > 0
    unguarded = browser_page(tmp_path / "open.html", width_px=360, decode=False)
    assert "it ran" in unguarded.messages
    assert unguarded.requests == ["http://localhost:9/x.png"]


def test_names_of_classes_are_text(browser_page, pages):
    opened = browser_page(pages / "finished.html")
    shown = opened.run("document.body.innerText")
    assert all(label in shown for label in HOSTILE)
    assert opened.run("document.querySelectorAll('img[src=x], script').length") == 0
    begun = browser_page(pages / "begun.html")
    assert "<script>alert(1)</script>" in begun.run("document.body.innerText")
    assert begun.messages == []


@pytest.mark.parametrize("name", ["finished", "begun", "outlines"])
def test_a_reader_who_cannot_see_the_page_finds_the_way(browser_page, pages, name):
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


def test_the_page_is_worked_by_keys_alone(browser_page, pages):
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
    opened.run("document.querySelector('#run details:not([open]) summary').focus()")
    opened.page.keyboard.press("Enter")
    assert opened.run("document.activeElement.parentElement.open")


def luminance_of(colour):
    """Of what the browser says: rgb(1, 2, 3), or color(srgb 0.1 0.2 0.3) where two were mixed."""
    mixed = colour.startswith("color(srgb")
    parts = colour[colour.index("(") + 1 : -1].removeprefix("srgb").replace(",", " ").split()[:3]
    channels = [float(part) / (1 if mixed else 255) for part in parts]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_letters_stand_out_from_the_page_in_light_and_dark(browser_page, pages, dark):
    """WCAG 2.1 asks for 4.5 to 1."""
    opened = browser_page(pages / "finished.html", dark=dark)
    ground = luminance_of(opened.run("getComputedStyle(document.body).backgroundColor"))
    assert (ground < 0.1) is dark
    for selector in ("body", ".soft", "nav a", "summary", "figcaption", "thead th"):
        letters = luminance_of(opened.run(f"getComputedStyle(document.querySelector({selector!r})).color"))
        low, high = sorted((ground, letters))
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector
    cells = "[...document.querySelectorAll('.matrix tbody td')].map(cell => getComputedStyle(cell))"
    for letters, cell in opened.run(f"{cells}.map(style => [style.color, style.backgroundColor])"):
        low, high = sorted((luminance_of(letters), luminance_of(cell)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, cell


def test_a_printed_page_shows_what_is_folded_away(browser_page, pages):
    opened = browser_page(pages / "finished.html", dark=True)
    shown = "document.querySelector('#run details:not([open]) dl').checkVisibility()"
    assert not opened.run(shown)
    opened.page.emulate_media(media="print")
    assert opened.run(shown)
    assert luminance_of(opened.run("getComputedStyle(document.body).backgroundColor")) == 1
