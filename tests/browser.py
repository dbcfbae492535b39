"""A real Chromium for tests of pages: it records every request and everything that a page complains about.

It is found on the PATH and driven by playwright. Where either is missing the tests are skipped, unless the environment
variable VAN_TEST_BROWSER is ``required``.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


class Opened(NamedTuple):
    """A page that is loaded: playwright's object, what it asked for beside itself, what its console said."""

    page: Any
    requests: list[str]
    messages: list[str]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        return self.page.evaluate(script)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A running browser. Of a module, as playwright keeps an event loop running that other tests would trip over."""
    missing = None
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        missing = f"no Chromium on the PATH (looked for {', '.join(NAMES)})"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "playwright is not installed; it comes with the extra dev"
    if missing is not None:
        if os.environ.get("VAN_TEST_BROWSER") == "required":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def browser_page(chromium: Any) -> Iterator[Callable[..., Opened]]:
    """Open a file at a width, light or dark, without a network; ``decode`` waits until images are seen."""
    contexts = []

    def open_page(path: Path, *, width_px: int = 1280, dark: bool = False, decode: bool = True) -> Opened:
        context = chromium.new_context(
            viewport={"width": width_px, "height": 900}, color_scheme="dark" if dark else "light", offline=True
        )
        contexts.append(context)
        opened = Opened(context.new_page(), [], [])
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        opened.page.on("console", lambda message: opened.messages.append(message.text))
        opened.page.on("pageerror", lambda error: opened.messages.append(str(error)))
        opened.page.on("dialog", lambda dialog: (opened.messages.append(dialog.message), dialog.dismiss()))
        opened.page.goto(path.resolve().as_uri())
        if decode:
            opened.run("Promise.all([...document.images].map(image => image.decode()))")
        ours = path.resolve().as_uri()
        opened.requests[:] = [url for url in opened.requests if url != ours and not url.startswith("data:")]
        return opened

    yield open_page
    for context in contexts:
        context.close()
