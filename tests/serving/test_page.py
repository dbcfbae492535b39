"""The pages in a real browser with a real server: what they show, and their errors."""

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
from datasets.synthetic_annotated import write_dense_checkpoint
from explain.small_models import image, write_small
from serving.page_session import KEY, PageSession
from serving.server import ServerProcess, running_server
from van.model import Model
from van.predict import Predictor
from van.visualization.drawing import class_color

LABELS = ("<img src=x onerror=alert(1)>", "bee & wasp", "кот", "dog")
CANVAS = "document.querySelector('.card canvas').toDataURL()"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Write two models, images, and invalid images; tests must not change them."""
    folder = tmp_path_factory.mktemp("page")
    write_small(folder / "animals.safetensors", image_size=64, class_names=LABELS)
    write_dense_checkpoint(folder / "digits.safetensors", "detect")
    write_dense_checkpoint(folder / "scenes.safetensors", "segment")
    for number, size in enumerate(((90, 60), (48, 80), (200, 150))):
        image(*size, seed=number).save(folder / f"{number}.png")
    image(80, 60).save(folder / "<b>bold & loud.jpg")
    (folder / "text.png").write_text("no image")
    (folder / "large.bmp").write_bytes(bytes(1 << 21))
    (folder / "key.txt").write_text(KEY)
    return folder


@pytest.fixture(scope="module")
def service(files) -> Iterator[ServerProcess]:
    flags = ("--max-body-mb", 1, "--max-queue", 2, "--api-key-file", files / "key.txt", "--threads", 1)
    models = [files / f"{name}.safetensors" for name in ("animals", "digits", "scenes")]
    with running_server(*models, *flags) as server:
        yield server


@pytest.fixture
def visit(chromium, service) -> Iterator[Callable[..., PageSession]]:  # noqa: F811
    """Open a page; with the API key unless ``key`` is empty."""
    contexts, sessions = [], []

    def open_page(
        path: str = "/", *, width_px: int = 1280, dark: bool = False, key: str = KEY, **options: Any
    ) -> PageSession:
        scheme = "dark" if dark else "light"
        context = chromium.new_context(viewport={"width": width_px, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        session = PageSession(context.new_page(), service.url)
        sessions.append(session)
        session.page.goto(service.url + path)
        if key:
            session.enter_key(key)
            loaded = "#model option" if path == "/" else ".endpoint"
            session.page.locator(loaded).first.wait_for(state="attached")
        return session

    yield open_page
    for session in sessions:
        assert session.foreign_requests == []
        assert session.errors == []
    for context in contexts:
        context.close()


def detections_of(service: ServerProcess, file: Path) -> list[dict]:
    response = service.client.post(
        "/predict",
        params={"model": "digits", "min_score": 0.05},
        content=file.read_bytes(),
        headers={"Content-Type": "image/png", "Authorization": f"Bearer {KEY}"},
    )
    return response.json()["predictions"][0]["detections"]


def show_detections(visit, files) -> PageSession:
    """Open the page with the detections of one image."""
    page = visit()
    page.page.select_option("#model", "digits")
    page.choose(files / "2.png")
    page.wait_for("1 done")
    return page


def test_an_image_has_the_prediction_of_the_model(visit, files):
    page = visit()
    page.choose(files / "0.png")
    page.wait_for("1 done")
    assert page.page.get_by_role("heading", level=1).inner_text() == "Image classification"
    expected = Predictor(Model.load(files / "animals.safetensors"), device="cpu")(files / "0.png").top(5)
    rows = page.card("0.png").get_by_role("list", name="Top classes").locator("li")
    shown = [(rows.nth(k).locator("bdi").inner_text(), rows.nth(k).locator(".value").inner_text()) for k in range(4)]
    assert shown == [(ranked.label, f"{100 * ranked.score:.1f} %") for ranked in expected]
    bars = page.run("[...document.querySelectorAll('.rows li')].map(li => +li.style.getPropertyValue('--fraction'))")
    assert bars == pytest.approx([ranked.score for ranked in expected], abs=1e-5)
    assert "90 × 60 px" in page.card("0.png").inner_text()
    assert "inference" in page.card("0.png").locator(".info").inner_text()
    assert page.run("document.querySelectorAll('img[src=x]').length") == 0


def test_several_images_keep_their_order_and_an_invalid_one_has_an_error(visit, files):
    page = visit()
    page.choose(files / "0.png", files / "text.png", files / "<b>bold & loud.jpg", files / "1.png")
    page.wait_for("3 done, 1 failed")
    names = page.page.locator(".card h3").all_inner_texts()
    assert names == ["0.png", "text.png", "<b>bold & loud.jpg", "1.png"]
    assert "text.png" in page.card("text.png").get_by_role("alert").inner_text()
    assert page.card("1.png").locator(".rows li").count() == 4
    page.card("text.png").get_by_role("button", name="Remove").click()
    page.wait_for("3 done.")
    page.page.get_by_role("button", name="Remove all").click()
    page.wait_for("No images yet")


def test_dropped_and_pasted_images_are_predicted_too(visit, files):
    page = visit()
    send_event = """([kind, data]) => {
        const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), carried = new DataTransfer();
        carried.items.add(new File([bytes], kind + ".png", {type: "image/png"}));
        const event = kind === "paste" ? new ClipboardEvent(kind, {clipboardData: carried, bubbles: true})
            : new DragEvent(kind, {dataTransfer: carried, bubbles: true, cancelable: true});
        document.body.dispatchEvent(event);
        return document.body.classList.contains("dragging"); }"""
    data = base64.b64encode((files / "1.png").read_bytes()).decode()
    assert page.page.evaluate(send_event, ["dragenter", data]) is True
    assert page.page.evaluate(send_event, ["drop", data]) is False
    page.page.evaluate(send_event, ["paste", data])
    page.wait_for("2 done")
    assert sorted(page.page.locator(".card h3").all_inner_texts()) == ["drop.png", "paste.png"]


def test_boxes_are_drawn_from_the_score_threshold_on(visit, files, service):
    page = show_detections(visit, files)
    assert page.page.get_by_role("heading", level=1).inner_text() == "Object detection"
    scores = [detection["score"] for detection in detections_of(service, files / "2.png")]
    rows = page.card("2.png").locator(".rows li")
    assert rows.count() == sum(score >= 0.3 for score in scores) > 0
    drawn = page.run(CANVAS)
    middle = sorted(scores)[len(scores) // 2]
    page.page.locator("#score").fill(f"{round(20 * middle) / 20:.2f}")
    threshold = float(page.page.locator("#score").input_value())
    assert rows.count() == sum(score >= threshold for score in scores)
    page.page.locator("#score").fill("1")
    assert rows.count() == sum(score >= 1 for score in scores)
    assert page.run(CANVAS) != drawn


def test_rows_and_boxes_have_the_same_numbers_and_class_colors(visit, files, service):
    """The badges on the canvas are what ``fillText`` draws, so it is recorded."""
    page = visit()
    page.run("""{ window.texts = []; const draw = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
            window.texts.push(text); return draw.call(this, text, ...rest); }; 0; }""")
    page.page.select_option("#model", "digits")
    page.choose(files / "2.png")
    page.wait_for("1 done")
    expected = [one for one in detections_of(service, files / "2.png") if one["score"] >= 0.3]
    badges = page.card("2.png").locator(".rows .badge")
    numbers = [str(place + 1) for place in range(len(expected))]
    assert badges.all_inner_texts() == numbers
    assert sorted(set(page.run("window.texts")), key=int) == numbers
    colors = [
        page.run(f"getComputedStyle(document.querySelectorAll('.rows .badge')[{place}]).backgroundColor")
        for place in range(len(expected))
    ]
    assert [channels(color) for color in colors] == [list(class_color(one["index"])) for one in expected]
    pixels = canvas_pixels(page)
    for detection in expected:  # the color of every box is on the canvas, in large areas: lines and a badge
        is_color = np.abs(pixels.astype(int) - class_color(detection["index"])).max(axis=-1) <= 1
        assert is_color.sum() > 200


def channels(color: str) -> list[int]:
    return [round(float(value)) for value in color[color.index("(") + 1 : -1].split(",")[:3]]


def canvas_pixels(page: PageSession) -> np.ndarray:
    return pixels_of(base64.b64decode(page.run(CANVAS).partition(",")[2]))


def test_hover_and_focus_of_a_row_highlight_its_box(visit, files):
    page = show_detections(visit, files)
    plain = page.run(CANVAS)
    rows = page.card("2.png").locator("button.row")
    rows.first.hover()
    hovered = page.run(CANVAS)
    assert hovered != plain
    page.page.get_by_role("heading", level=1).hover()
    assert page.run(CANVAS) == plain
    rows.first.focus()
    assert page.run(CANVAS) == hovered
    page.run("document.activeElement.blur()")
    assert page.run(CANVAS) == plain


def test_a_row_is_selected_by_keyboard(visit, files):
    page = show_detections(visit, files)
    first = page.card("2.png").locator("button.row").first
    first.focus()
    page.page.keyboard.press("Enter")
    assert first.get_attribute("aria-pressed") == "true"
    page.page.keyboard.press("Space")
    assert first.get_attribute("aria-pressed") == "false"


def test_an_image_is_enlarged_on_click_and_closed_with_escape(visit, files):
    page = show_detections(visit, files)
    page.card("2.png").locator("canvas").click()
    dialog = page.page.get_by_role("dialog", name="2.png")
    dialog.wait_for()
    large = dialog.locator("canvas").bounding_box()
    assert max(large["width"] / 1280, large["height"] / 900) > 0.8  # it fills the window
    assert large["width"] <= 1280
    assert large["height"] <= 900
    ratio = page.run("(c => c.width / c.height)(document.querySelector('.lightbox canvas'))")
    assert large["width"] / large["height"] == pytest.approx(ratio, rel=0.01)
    page.page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")


def test_the_enlarged_image_works_by_keyboard_and_returns_the_focus(visit, files):
    page = visit()
    page.choose(files / "0.png")
    page.wait_for("1 done")
    button = page.card("0.png").get_by_role("button", name="Enlarge 0.png")
    button.focus()
    page.page.keyboard.press("Enter")
    dialog = page.page.get_by_role("dialog", name="0.png")
    dialog.wait_for()
    assert page.run("document.querySelector('.lightbox').contains(document.activeElement)")
    before = dialog.locator("canvas").bounding_box()["width"]
    zoom = dialog.get_by_role("button", name="Zoom in")
    zoom.focus()
    page.page.keyboard.press("Enter")
    assert dialog.locator("canvas").bounding_box()["width"] == pytest.approx(2 * before, rel=0.01)
    page.page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert page.run("document.activeElement.getAttribute('aria-label')") == "Enlarge 0.png"


def test_segments_are_drawn_and_listed_with_their_class_colors(visit, files):
    page = visit()
    page.page.select_option("#model", "scenes")
    page.choose(files / "2.png")
    page.wait_for("1 done")
    assert page.page.get_by_role("heading", level=1).inner_text() == "Semantic segmentation"
    segmentation = page.card("2.png").get_by_role("img", name="Segmentation of 2.png")
    segmentation.click()
    page.page.get_by_role("dialog", name="Segmentation of 2.png").get_by_role("img").wait_for()
    page.page.keyboard.press("Escape")
    rows = page.card("2.png").get_by_role("list", name="Segments").locator("li")
    assert rows.count() > 0
    fractions = page.run(
        "[...document.querySelectorAll('.rows li')].map(li => +li.style.getPropertyValue('--fraction'))"
    )
    assert sum(fractions) == pytest.approx(1, abs=1e-6)


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_explanations_are_requested_when_selected(visit, files, service):
    page = visit()
    page.choose(files / "0.png")
    page.wait_for("1 done")
    assert not any(url.endswith("/explain") for url in page.requests)
    page.page.get_by_label("Class activation map (CAM)").check()
    shown = page.card("0.png").locator(".explanation img")
    shown.wait_for()
    page.page.select_option("#method", "eigen-cam")
    page.page.get_by_label("Class", exact=True).fill("кот")
    page.page.get_by_label("Class", exact=True).press("Enter")
    page.card("0.png").locator(".explanation img[alt*='кот']").wait_for()
    drawn = page.run("""{ const image = document.querySelector(".explanation img");
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        canvas.getContext("2d").drawImage(image, 0, 0); canvas.toDataURL(); }""")
    headers = {"Accept": "image/png", "Content-Type": "image/png", "Authorization": f"Bearer {KEY}"}
    options = {"method": "eigen-cam", "classes": "кот"}
    expected = service.client.post("/explain", params=options, content=(files / "0.png").read_bytes(), headers=headers)
    assert np.array_equal(pixels_of(base64.b64decode(drawn.partition(",")[2])), pixels_of(expected.content))
    page.page.get_by_label("Attention maps (LKA)").check()
    page.card("0.png").locator(".explanation img[alt*=LKA]").wait_for()
    assert page.run("document.querySelector('.explanation img').naturalWidth") > 200
    page.page.get_by_label("No explanation").check()
    shown.wait_for(state="detached")


def test_an_unknown_class_is_an_error_beside_the_image(visit, files):
    page = visit()
    page.choose(files / "0.png")
    page.wait_for("1 done")
    page.page.get_by_label("Class activation map (CAM)").check()
    page.page.get_by_label("Class", exact=True).fill("unicorn")
    page.page.get_by_label("Class", exact=True).press("Enter")
    page.card("0.png").get_by_role("alert").filter(has_text="unicorn").wait_for()
    assert page.card("0.png").locator(".prediction .rows li").count() == 4  # the prediction stays


def test_the_api_key_is_requested_and_kept_in_memory_only(visit, files):
    page = visit(key="")
    page.enter_key("a-key-that-is-wrong")
    page.page.get_by_role("heading", name="Invalid API key").wait_for()
    page.enter_key()
    page.choose(files / "0.png")
    page.wait_for("1 done")
    stored = page.run("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
    assert KEY not in stored
    assert KEY not in page.run("document.documentElement.outerHTML")
    page.page.reload()
    page.page.get_by_role("heading", name="API key required").wait_for()
    page.page.get_by_role("button", name="Cancel").click()
    page.page.get_by_role("alert").filter(has_text="API key").wait_for()


def test_a_too_large_file_is_not_sent(visit, files):
    page = visit()
    page.requests.clear()
    page.choose(files / "large.bmp")
    page.wait_for("1 failed")
    message = page.card("large.bmp").get_by_role("alert").inner_text()
    assert "2.0 MB" in message
    assert "1.0 MB" in message
    assert [url for url in page.requests if url.endswith("/predict")] == []


def test_requests_to_an_overloaded_server_are_retried(visit, files, service):
    """The worker is suspended for a while, and the queue takes two images."""
    (worker,) = service.workers
    page = visit()
    os.kill(worker, signal.SIGSTOP)
    try:
        page.choose(files / "0.png", files / "1.png", files / "2.png")
        page.page.locator("#problem").filter(has_text="Retrying in 1 s").wait_for()
        assert page.page.locator(".card .error").count() == 0
    finally:
        os.kill(worker, signal.SIGCONT)
    page.wait_for("3 done")
    assert page.page.locator("#problem").is_hidden()


def test_requests_to_an_unreachable_server_are_retried(visit, files):
    page = visit()
    page.page.context.set_offline(True)
    page.choose(files / "0.png")
    page.page.locator("#problem").filter(has_text="Cannot reach the server").wait_for()
    page.page.context.set_offline(False)
    page.wait_for("1 done")
    assert page.page.locator("#problem").is_hidden()
    page.messages[:] = [message for message in page.messages if "ERR_INTERNET_DISCONNECTED" not in message]


OVERFLOWING = """[...document.body.querySelectorAll("*")].filter(one => !one.closest(".skip, .visually-hidden, dialog,"
    + " .scroll, pre") && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 80))"""
SMALL_TARGETS = """[...document.querySelectorAll("button, select, .choose, .kinds label, summary")].filter(one =>
    one.offsetWidth && one.getBoundingClientRect().height < 32).map(one => one.outerHTML.slice(0, 60))"""


def check_contrast(page: PageSession, dark: bool, selectors: tuple[str, ...]) -> None:
    background = luminance_of(page.run("getComputedStyle(document.body).backgroundColor"))
    assert (background < 0.1) is dark
    for selector in selectors:
        text = luminance_of(page.run(f"getComputedStyle(document.querySelector({selector!r})).color"))
        low, high = sorted((background, text))
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector  # WCAG 2.1, contrast (minimum)


def luminance_of(color: str) -> float:
    values = [float(value) / 255 for value in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_nothing_overflows_and_everything_is_readable(visit, files, dark):
    page = visit(width_px=360, dark=dark, reduced_motion="reduce")
    for model in ("animals", "digits"):
        page.page.select_option("#model", model)
        page.page.get_by_label("Class activation map (CAM)").check()
        page.choose(files / "0.png", files / "text.png")
        page.card("0.png").first.locator(".explanation img").wait_for()
        assert page.run("document.documentElement.scrollWidth") == 360
        assert page.run(OVERFLOWING) == []
        page.page.get_by_role("button", name="Remove all").click()
    check_contrast(
        page, dark, ("body", ".soft", "legend", ".field label", "#status", "footer code", "nav a[href=docs]")
    )
    assert page.run(SMALL_TARGETS) == []


def test_everything_is_reachable_and_usable_by_keyboard(visit, files):
    page = visit()
    page.choose(files / "0.png")
    page.wait_for("1 done")
    page.run("document.activeElement.blur()")
    page.page.keyboard.press("Tab")
    assert page.run("document.activeElement.className") == "skip"
    reached, without_outline = [], []
    for _ in range(14):
        page.page.keyboard.press("Tab")
        reached.append(page.run("document.activeElement.id || document.activeElement.textContent"))
        outlined = "document.activeElement.closest('.drop') ?? document.activeElement"
        if page.run(f"getComputedStyle({outlined}).outlineStyle") == "none":
            without_outline.append(reached[-1])
        if reached[-1] == "clear":
            break
        if page.run("document.activeElement.name") == "kind":
            page.page.keyboard.press("ArrowDown")
            page.card("0.png").locator(".explanation img").wait_for()
    # the empty one is the choice of an explanation
    assert reached == ["Predict", "API", "files", "model", "", "class", "method", "layer", "clear"]
    assert without_outline == []
    assert page.run("document.querySelector('[name=kind]:checked').value") == "cam"


def test_a_screen_reader_gets_names_headings_and_status(visit, files):
    page = visit()
    page.choose(files / "0.png")
    page.wait_for("1 done. 0.png: ")
    unnamed = """[...document.querySelectorAll("input, select")].filter(one => !one.labels.length).map(one => one.id)"""
    assert page.run(unnamed) == []
    assert page.run("document.querySelector('canvas').getAttribute('aria-label')").startswith("0.png: ")
    levels = page.run("[...document.querySelectorAll('main :is(h2, h3), h1')].map(one => +one.tagName[1])")
    assert levels == [1, 2, 2, 3]
    check_references(page)


def check_references(page: PageSession) -> None:
    """Check that ids are unique, and that every attribute that names an id names an existing one."""
    ids = page.run("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))
    referenced = page.run("""["aria-labelledby", "aria-describedby", "list", "for"].flatMap(name =>
        [...document.querySelectorAll(`[${name}]`)].map(one => one.getAttribute(name)))""")
    assert referenced
    assert set(referenced) <= set(ids)


def test_motion_is_reduced_on_request(visit, files):
    for preference, name in (("reduce", "none"), ("no-preference", "spin")):
        page = visit(reduced_motion=preference)
        page.run("{ document.body.append(Object.assign(document.createElement('p'), {className: 'busy'})); }")
        assert page.run("getComputedStyle(document.querySelector('.busy'), '::before').animationName") == name


def test_foreign_scripts_styles_and_requests_are_blocked_and_recorded(chromium, service):  # noqa: F811
    """Negative control of the ``visit`` fixture."""
    context = chromium.new_context()
    page = PageSession(context.new_page(), service.url)
    page.page.goto(service.url)
    page.run("{ const s = document.createElement('script'); s.textContent = 'alert(1)'; document.body.append(s); }")
    page.run("{ document.body.insertAdjacentHTML('beforeend', '<p style=\"width: 3000px\">wide</p>'); }")
    page.run("fetch('http://127.0.0.2:9/x').catch(() => 0)")
    page.page.wait_for_timeout(200)
    assert len([message for message in page.errors if "Content Security Policy" in message]) >= 3
    assert "1" not in page.messages
    assert page.run("document.documentElement.scrollWidth") < 3000
    context.close()


def test_the_page_decodes_run_lengths_as_coco_encodes_them(visit):
    """Against the encoder, with masks that start with a set pixel, end with one, and are empty."""
    page = visit()
    random = np.random.default_rng(0)
    for fraction in (0.0, 0.02, 0.5, 1.0):
        mask = (random.random((37, 53)) < fraction).astype(np.uint8)
        counts = encode(np.asfortranarray(mask))["counts"].decode()
        runs = page.run(f"import('/page/draw.js').then(draw => draw.decodeRunLengths({json.dumps(counts)}))")
        values = np.repeat(np.arange(len(runs)) % 2, runs)
        assert np.array_equal(values.reshape(53, 37).T, mask)


def test_the_page_has_the_class_colors_of_drawn_predictions(visit):
    page = visit()
    shown = page.run("import('/page/draw.js').then(draw => [...Array(200).keys()].map(draw.classColor))")
    assert np.abs(np.array(shown) - [class_color(index) for index in range(200)]).max() <= 1  # rounding of halves
