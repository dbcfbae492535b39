"""The page in a real browser at a real service: what it shows, and what it says when things go wrong."""

import base64
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core.mask import encode
from PIL import Image

from browser import chromium  # noqa: F401
from data.made_marked import write_marked_checkpoint
from explain.small import picture, write_small
from serve.running import Running, running
from serve.visits import KEY, Visit
from van.predict import Predictor
from van.results.drawing import class_colour

LABELS = ("<img src=x onerror=alert(1)>", "bee & wasp", "кот", "dog")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Two networks, some pictures, and what is none. Not to be changed."""
    folder = tmp_path_factory.mktemp("page")
    write_small(folder / "animals.safetensors", size_px=64, labels=LABELS)
    write_marked_checkpoint(folder / "digits.safetensors", "detect")
    for number, size in enumerate(((90, 60), (48, 80), (200, 150))):
        picture(*size, seed=number).save(folder / f"{number}.png")
    picture(80, 60).save(folder / "<b>bold & loud.jpg")
    (folder / "words.png").write_text("no picture")
    (folder / "large.bmp").write_bytes(bytes(1 << 21))
    (folder / "key.txt").write_text(KEY)
    return folder


@pytest.fixture(scope="module")
def service(files) -> Iterator[Running]:
    flags = ("--max-body-mb", 1, "--max-queue", 2, "--api-key-file", files / "key.txt", "--threads", 1)
    with running(files / "animals.safetensors", files / "digits.safetensors", *flags) as server:
        yield server


@pytest.fixture
def visit(chromium, service) -> Iterator[Callable[..., Visit]]:  # noqa: F811
    """Open the page; with its key unless ``key`` is empty."""
    contexts, visits = [], []

    def open_page(*, width_px: int = 1280, dark: bool = False, key: str = KEY, **options: Any) -> Visit:
        scheme = "dark" if dark else "light"
        context = chromium.new_context(viewport={"width": width_px, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        opened = Visit(context.new_page(), service.url)
        visits.append(opened)
        opened.page.goto(service.url)
        if key:
            opened.give_key(key)
            opened.page.locator("#model option").first.wait_for(state="attached")
        return opened

    yield open_page
    for opened in visits:
        assert opened.elsewhere == []
        assert opened.complaints == []
    for context in contexts:
        context.close()


def test_a_picture_is_answered_as_the_network_answers_it(visit, files):
    page = visit()
    page.choose(files / "0.png")
    page.wait_for("1 answered")
    expected = Predictor.load(files / "animals.safetensors", device="cpu")(files / "0.png").top(5)
    rows = page.card("0.png").locator(".bars li")
    shown = [(rows.nth(k).locator("bdi").inner_text(), rows.nth(k).locator("span").inner_text()) for k in range(4)]
    assert shown == [(ranked.label, f"{100 * ranked.probability:.1f} %") for ranked in expected]
    shares = page.run("[...document.querySelectorAll('.bars li')].map(li => +li.style.getPropertyValue('--share'))")
    assert shares == pytest.approx([ranked.probability for ranked in expected], abs=1e-5)
    assert "90 × 60 px" in page.card("0.png").inner_text()
    assert "network" in page.card("0.png").locator(".file").inner_text()
    assert page.run("document.querySelectorAll('img[src=x]').length") == 0


def test_several_pictures_stand_in_their_order_and_one_that_is_none_says_so(visit, files):
    page = visit()
    page.choose(files / "0.png", files / "words.png", files / "<b>bold & loud.jpg", files / "1.png")
    page.wait_for("3 answered, 1 failed")
    names = page.page.locator(".card h3").all_inner_texts()
    assert names == ["0.png", "words.png", "<b>bold & loud.jpg", "1.png"]
    alert = page.card("words.png").get_by_role("alert").inner_text()
    assert "no picture that can be read" in alert
    assert page.card("1.png").locator(".bars li").count() == 4
    page.card("words.png").get_by_role("button", name="Remove").click()
    page.wait_for("3 answered.")
    page.page.get_by_role("button", name="Remove all").click()
    page.wait_for("No picture yet")


def test_dropped_and_pasted_pictures_are_taken_too(visit, files):
    page = visit()
    give = """([kind, data]) => {
        const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), carried = new DataTransfer();
        carried.items.add(new File([bytes], kind + ".png", {type: "image/png"}));
        const event = kind === "paste" ? new ClipboardEvent(kind, {clipboardData: carried, bubbles: true})
            : new DragEvent(kind, {dataTransfer: carried, bubbles: true, cancelable: true});
        document.body.dispatchEvent(event);
        return document.body.classList.contains("over"); }"""
    data = base64.b64encode((files / "1.png").read_bytes()).decode()
    assert page.page.evaluate(give, ["dragenter", data]) is True
    assert page.page.evaluate(give, ["drop", data]) is False
    page.page.evaluate(give, ["paste", data])
    page.wait_for("2 answered")
    assert sorted(page.page.locator(".card h3").all_inner_texts()) == ["drop.png", "paste.png"]


def test_boxes_are_drawn_and_shown_from_the_chosen_score_on(visit, files, service):
    page = visit()
    page.page.select_option("#model", "digits")
    page.choose(files / "2.png")
    page.wait_for("1 answered")
    answer = service.client.post(
        "/predict",
        params={"model": "digits", "min_score": 0.05},
        content=(files / "2.png").read_bytes(),
        headers={"Content-Type": "image/png", "Authorization": f"Bearer {KEY}"},
    ).json()
    scores = [thing["score"] for thing in answer["answers"][0]["things"]]
    rows = page.card("2.png").locator(".bars li")
    assert rows.count() == sum(score >= 0.3 for score in scores) > 0
    inked = "document.querySelector('.card canvas').toDataURL()"
    drawn = page.run(inked)
    middle = sorted(scores)[len(scores) // 2]
    page.page.locator("#score").fill(f"{round(20 * middle) / 20:.2f}")
    least = float(page.page.locator("#score").input_value())
    assert rows.count() == sum(score >= least for score in scores)
    page.page.locator("#score").fill("1")
    assert rows.count() == sum(score >= 1 for score in scores)
    assert page.run(inked) != drawn


def test_one_thing_is_looked_at_by_keyboard(visit, files):
    page = visit()
    page.page.select_option("#model", "digits")
    page.choose(files / "2.png")
    page.wait_for("1 answered")
    first = page.card("2.png").locator("button.row").first
    first.focus()
    page.page.keyboard.press("Enter")
    assert first.get_attribute("aria-pressed") == "true"
    page.page.keyboard.press("Space")
    assert first.get_attribute("aria-pressed") == "false"


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_maps_are_shown_when_they_are_switched_on(visit, files, service):
    page = visit()
    page.choose(files / "0.png")
    page.wait_for("1 answered")
    assert not any(url.endswith("/explain") for url in page.requests)
    page.page.get_by_label("what it rests on").check()
    shown = page.card("0.png").locator(".maps img")
    shown.wait_for()
    page.page.select_option("#method", "eigen-cam")
    page.page.get_by_label("Class", exact=True).fill("кот")
    page.page.get_by_label("Class", exact=True).press("Enter")
    page.card("0.png").locator(".maps img[alt*='кот']").wait_for()
    asked = {"method": "eigen-cam", "classes": "кот"}
    drawn = page.run("""{ const image = document.querySelector(".maps img"), canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        canvas.getContext("2d").drawImage(image, 0, 0); canvas.toDataURL(); }""")
    headers = {"Accept": "image/png", "Content-Type": "image/png", "Authorization": f"Bearer {KEY}"}
    expected = service.client.post("/explain", params=asked, content=(files / "0.png").read_bytes(), headers=headers)
    assert np.array_equal(pixels(base64.b64decode(drawn.partition(",")[2])), pixels(expected.content))
    page.page.get_by_label("LKA").check()
    page.card("0.png").locator(".maps img[alt*=LKA]").wait_for()
    assert page.run("document.querySelector('.maps img').naturalWidth") > 200
    page.page.get_by_label("the answer alone").check()
    shown.wait_for(state="detached")


def test_a_class_that_is_not_there_is_said_beside_the_picture(visit, files):
    page = visit()
    page.choose(files / "0.png")
    page.wait_for("1 answered")
    page.page.get_by_label("what it rests on").check()
    page.page.get_by_label("Class", exact=True).fill("unicorn")
    page.page.get_by_label("Class", exact=True).press("Enter")
    page.card("0.png").get_by_role("alert").filter(has_text="unicorn").wait_for()
    assert page.card("0.png").locator(".said .bars li").count() == 4  # the answer stays


def test_the_key_is_asked_for_and_kept_in_memory_alone(visit, files):
    page = visit(key="")
    page.give_key("a-key-that-is-wrong")
    page.page.get_by_role("heading", name="does not take this key").wait_for()
    page.give_key()
    page.choose(files / "0.png")
    page.wait_for("1 answered")
    kept = page.run("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
    assert KEY not in kept
    assert KEY not in page.run("document.documentElement.outerHTML")
    page.page.reload()
    page.page.get_by_role("heading", name="asks for a key").wait_for()
    page.page.get_by_role("button", name="Not now").click()
    page.page.get_by_role("alert").filter(has_text="none was given").wait_for()


def test_what_is_too_large_is_not_even_sent(visit, files):
    page = visit()
    page.requests.clear()
    page.choose(files / "large.bmp")
    page.wait_for("1 failed")
    assert "it has 2.0 MB, and the server takes at most 1.0 MB" in page.card("large.bmp").inner_text()
    assert [url for url in page.requests if url.endswith("/predict")] == []


def test_an_overloaded_server_is_asked_again_when_it_says_so(visit, files, service):
    """Its worker is held for a while, and its queue takes two."""
    (worker,) = service.workers
    page = visit()
    os.kill(worker, signal.SIGSTOP)
    try:
        page.choose(files / "0.png", files / "1.png", files / "2.png")
        page.page.locator("#problem").filter(has_text="Trying again in 1 s").wait_for()
        assert page.page.locator(".card .trouble").count() == 0
    finally:
        os.kill(worker, signal.SIGCONT)
    page.wait_for("3 answered")
    assert page.page.locator("#problem").is_hidden()


def test_a_server_that_is_gone_is_told_and_asked_again(visit, files):
    page = visit()
    page.page.context.set_offline(True)
    page.choose(files / "0.png")
    page.page.locator("#problem").filter(has_text="The server does not answer").wait_for()
    page.page.context.set_offline(False)
    page.wait_for("1 answered")
    assert page.page.locator("#problem").is_hidden()
    page.messages[:] = [message for message in page.messages if "ERR_INTERNET_DISCONNECTED" not in message]


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_nothing_sticks_out_and_everything_can_be_read(visit, files, dark):
    page = visit(width_px=360, dark=dark, reduced_motion="reduce")
    for network in ("animals", "digits"):
        page.page.select_option("#model", network)
        page.page.get_by_label("what it rests on").check()
        page.choose(files / "0.png", files / "words.png")
        page.card("0.png").first.locator(".maps img").wait_for()
        assert page.run("document.documentElement.scrollWidth") == 360
        wide = """[...document.body.querySelectorAll("*")].filter(one => !one.closest(".skip, .unseen, dialog")
            && one.getBoundingClientRect().right > 361).map(one => one.outerHTML.slice(0, 80))"""
        assert page.run(wide) == []
        page.page.get_by_role("button", name="Remove all").click()
    ground = luminance_of(page.run("getComputedStyle(document.body).backgroundColor"))
    assert (ground < 0.1) is dark
    for selector in ("body", ".soft", "legend", ".field label", "#status", "footer code"):
        letters = luminance_of(page.run(f"getComputedStyle(document.querySelector({selector!r})).color"))
        low, high = sorted((ground, letters))
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector  # what WCAG 2.1 asks for
    small = """[...document.querySelectorAll("button, select, .choose, .kinds label")].filter(one => one.offsetWidth
        && one.getBoundingClientRect().height < 32).map(one => one.outerHTML.slice(0, 60))"""
    assert page.run(small) == []


def luminance_of(colour: str) -> float:
    channels = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_everything_is_reached_and_worked_by_keys(visit, files):
    page = visit()
    page.choose(files / "0.png")
    page.wait_for("1 answered")
    page.run("document.activeElement.blur()")
    page.page.keyboard.press("Tab")
    assert page.run("document.activeElement.className") == "skip"
    reached, unseen = [], []
    for _ in range(12):
        page.page.keyboard.press("Tab")
        reached.append(page.run("document.activeElement.id"))
        ringed = "document.activeElement.closest('.drop') ?? document.activeElement"
        if page.run(f"getComputedStyle({ringed}).outlineStyle") == "none":
            unseen.append(reached[-1])
        if reached[-1] == "clear":
            break
        if page.run("document.activeElement.name") == "kind":
            page.page.keyboard.press("ArrowDown")
            page.card("0.png").locator(".maps img").wait_for()
    assert reached == ["files", "model", "", "class", "method", "layer", "clear"]  # the third is the choice of maps
    assert unseen == []
    assert page.run("document.querySelector('[name=kind]:checked').value") == "maps"


def test_a_reader_who_cannot_see_the_page_is_told_everything(visit, files):
    page = visit()
    page.choose(files / "0.png")
    page.wait_for("1 answered. 0.png: ")
    unnamed = """[...document.querySelectorAll("input, select")].filter(one => !one.labels.length).map(one => one.id)"""
    assert page.run(unnamed) == []
    assert page.run("document.querySelector('canvas').getAttribute('aria-label')").startswith("0.png: ")
    levels = page.run("[...document.querySelectorAll('main :is(h2, h3), h1')].map(one => +one.tagName[1])")
    assert levels == [1, 2, 2, 3]
    ids = page.run("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))
    pointed = """[...document.querySelectorAll("[aria-labelledby], [aria-describedby], [list]")].flatMap(one =>
        ["aria-labelledby", "aria-describedby", "list"].map(name => one.getAttribute(name)).filter(id => id))"""
    assert set(page.run(pointed)) <= set(ids)


def test_motion_is_left_out_for_those_who_ask(visit, files):
    for wish, name in (("reduce", "none"), ("no-preference", "turn")):
        page = visit(reduced_motion=wish)
        made = "document.body.append(Object.assign(document.createElement('p'), {className: 'busy'}))"
        page.run(f"{{ {made}; }}")
        assert page.run("getComputedStyle(document.querySelector('.busy'), '::before').animationName") == name


def test_what_the_tests_above_look_for_would_be_seen(chromium, service):  # noqa: F811
    """The control: script and style that are not the page's own are held off, and what is asked of others is seen."""
    context = chromium.new_context()
    page = Visit(context.new_page(), service.url)
    page.page.goto(service.url)
    page.run("{ const s = document.createElement('script'); s.textContent = 'alert(1)'; document.body.append(s); }")
    page.run("{ document.body.insertAdjacentHTML('beforeend', '<p style=\"width: 3000px\">wide</p>'); }")
    page.run("fetch('http://127.0.0.2:9/x').catch(() => 0)")
    page.page.wait_for_timeout(200)
    assert len([message for message in page.complaints if "Content Security Policy" in message]) >= 3
    assert "1" not in page.messages
    assert page.run("document.documentElement.scrollWidth") < 3000
    context.close()


def test_the_page_draws_run_lengths_as_coco_writes_them(visit):
    """Against the encoder, with masks that begin with a set pixel, end with one, and hold none."""
    page = visit()
    random = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 1.0):
        mask = (random.random((37, 53)) < share).astype(np.uint8)
        counts = encode(np.asfortranarray(mask))["counts"].decode()
        runs = page.run(f"import('/page/draw.js').then(draw => draw.runsOf({json.dumps(counts)}))")
        values = np.repeat(np.arange(len(runs)) % 2, runs)
        assert np.array_equal(values.reshape(53, 37).T, mask)


def test_the_page_gives_classes_the_colours_of_drawn_answers(visit):
    page = visit()
    shown = page.run("import('/page/draw.js').then(draw => [...Array(200).keys()].map(draw.classColour))")
    assert (
        np.abs(np.array(shown) - [class_colour(index) for index in range(200)]).max() <= 1
    )  # halves are rounded apart
