"""A page of the service in a browser, and everything that a test asks of it."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

KEY = "an-open-secret-of-tests"
REFUSED = "Failed to load resource: the server responded with a status of 4"
"""What Chromium itself says of a status, whatever a page does with it."""
WAIT_MS = 20_000


class Visit:
    """A page at the service, what its browser asked for and what its console said."""

    def __init__(self, page: Any, origin: str) -> None:
        self.page = page
        self.origin = origin
        self.requests: list[str] = []
        self.messages: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("dialog", lambda dialog: (self.messages.append(dialog.message), dialog.dismiss()))

    def give_key(self, key: str = KEY) -> None:
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Use this key").click()

    def choose(self, *paths: Path) -> None:
        self.page.set_input_files("#files", [str(path) for path in paths])

    def card(self, name: str) -> Any:
        return self.page.get_by_role("listitem").filter(has=self.page.get_by_role("heading", name=name, exact=True))

    def wait_for(self, words: str) -> None:
        """Until the line that is read out holds ``words``."""
        self.page.get_by_role("status").filter(has_text=words).wait_for()

    def run(self, script: str) -> Any:
        return self.page.evaluate(script)

    @property
    def elsewhere(self) -> list[str]:
        """Requests to anything but the service."""
        here = urlsplit(self.origin).netloc
        return [url for url in self.requests if urlsplit(url).netloc != here and not url.startswith(("data:", "blob:"))]

    @property
    def complaints(self) -> list[str]:
        return [message for message in self.messages if not message.startswith(REFUSED)]
