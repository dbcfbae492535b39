"""A page of the server in a browser, with everything that its browser requests and logs."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

KEY = "an-open-secret-of-tests"
EXPECTED_LOG = "Failed to load resource: the server responded with a status of 4"
"""What Chromium itself logs for such a status, whatever a page does with it."""
TIMEOUT_MS = 20_000


class PageSession:
    """An open page of the server, the URLs that it requested and the messages of its console."""

    def __init__(self, page: Any, origin: str) -> None:
        self.page = page
        self.origin = origin
        self.requests: list[str] = []
        self.messages: list[str] = []
        page.set_default_timeout(TIMEOUT_MS)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("dialog", lambda dialog: (self.messages.append(dialog.message), dialog.dismiss()))

    def enter_key(self, key: str = KEY) -> None:
        """Fill in and submit the dialog for the API key."""
        self.page.get_by_label("API key", exact=True).fill(key)
        self.page.get_by_role("button", name="Use this key").click()

    def choose(self, *paths: Path) -> None:
        """Choose image files."""
        self.page.set_input_files("#files", [str(path) for path in paths])

    def card(self, name: str) -> Any:
        """Return the card of an image."""
        return self.page.get_by_role("listitem").filter(has=self.page.get_by_role("heading", name=name, exact=True))

    def wait_for(self, text: str) -> None:
        """Wait until the status line contains ``text``."""
        self.page.get_by_role("status").filter(has_text=text).wait_for()

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        return self.page.evaluate(script)

    @property
    def foreign_requests(self) -> list[str]:
        """Return the requested URLs that are not on the server."""
        host = urlsplit(self.origin).netloc
        return [url for url in self.requests if urlsplit(url).netloc != host and not url.startswith(("data:", "blob:"))]

    @property
    def errors(self) -> list[str]:
        """Return the console messages, without those about expected statuses."""
        return [message for message in self.messages if not message.startswith(EXPECTED_LOG)]
