"""A local hub: a server for the few requests that huggingface_hub makes for one file.

``repositories`` maps a repository to its files. A file's content may be wrapped in ``Short`` (fewer bytes than
Content-Length) or replaced by a status code.
"""

import dataclasses
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


@dataclasses.dataclass(frozen=True)
class Short:
    """A transfer that ends early: the Content-Length is that of ``content``, and half of it is sent."""

    content: bytes


class LocalHub(ThreadingHTTPServer):
    """A server on a free port of the loopback interface, until the block ends or /stop is requested."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, dict[str, bytes | Short | int]]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "LocalHub":
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub

    def do_HEAD(self) -> None:
        self._respond(with_body=False)

    def do_GET(self) -> None:
        self._respond(with_body=True)

    def _respond(self, *, with_body: bool) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        if self.path == "/stop":
            self.server.shutdown()
            self.server.server_close()
            return self._send(200, {}, b"")
        repository, _, name = self.path.lstrip("/").partition("/resolve/main/")
        files = self.server.repositories.get(repository)
        if files is None:
            return self._send(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"")
        content = files.get(name)
        if content is None:
            return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b"")
        if isinstance(content, int):
            return self._send(content, {}, b"error")
        whole = content.content if isinstance(content, Short) else content
        headers = {"ETag": f'"{hashlib.sha256(whole).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if not with_body:
            return self._send(200, {**headers, "X-Linked-Size": str(len(whole))}, b"", length=len(whole))
        return self._send(200, headers, whole[: len(whole) // 2] if isinstance(content, Short) else whole)

    def _send(self, status: int, headers: dict[str, str], body: bytes, *, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
