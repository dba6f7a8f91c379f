"""A local HTTP server that speaks what a download uses of the Hugging Face hub's protocol, and can misbehave.

HEAD and GET of /datasets/{repo}/resolve/{revision}/{path}: small files are served with their ETag; .bin files
are redirected to /cdn/ with X-Linked-Etag (their SHA-256) and X-Linked-Size, and served there with Range. No
xet is announced.
"""

import hashlib
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Standin:
    """Files by path, faults to come by (method, path), and the requests that came."""

    repo: str
    files: dict[str, bytes]
    commit: str = COMMIT
    faults: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    retry_after: str = "1"
    url: str = ""

    def gets(self, path: str) -> list[str | None]:
        """The Range header of each GET of a file."""
        return [rng for method, name, rng in self.requests if method == "GET" and name == path]


def _handler(standin: Standin) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.respond()

        def do_GET(self) -> None:
            self.respond()

        def respond(self) -> None:
            match = re.fullmatch(
                r"(?:/datasets/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)|/cdn)/(?P<path>.+)", self.path
            )
            if not match:
                return self.answer(404, {})
            path = match["path"]
            standin.requests.append((self.command, path, self.headers.get("Range")))
            if match["repo"] not in (None, standin.repo):
                return self.answer(404, {"X-Error-Code": "RepoNotFound"})
            if match["rev"] not in (None, "main", standin.commit):
                return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            queue = standin.faults[self.command, path]
            fault = queue.pop(0) if queue else ""
            if fault.isdigit():
                return self.answer(int(fault), {"Retry-After": standin.retry_after} if fault == "429" else {})
            if path not in standin.files:
                return self.answer(404, {"X-Error-Code": "EntryNotFound"})
            return self.serve(path, fault, redirect=path.endswith(".bin") and match["repo"] is not None)

        def serve(self, path: str, fault: str, *, redirect: bool) -> None:
            body = standin.files[path]
            digest = hashlib.sha256(body).hexdigest()
            headers = {"X-Repo-Commit": standin.commit, "ETag": f'"{digest[:40]}"', "Accept-Ranges": "bytes"}
            if redirect:
                linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(body))}
                return self.answer(302, {**headers, **linked, "Location": f"{standin.url}/cdn/{path}"})
            status, size = 200, len(body)
            if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
                start = int(found[1])
                status, body = 206, body[start:]
                headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
            if fault == "truncate":  # a shorter file, consistently announced
                body = body[: len(body) // 2]
            if fault == "corrupt":
                body = body[:-1] + bytes([body[-1] ^ 1])
            if fault == "break":  # announces all, sends half, hangs up
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.close_connection = True
                return None
            return self.answer(status, headers, body)

    return Handler


@contextmanager
def serving(standin: Standin) -> Iterator[Standin]:
    """Runs the server on a free local port while the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(standin))
    server.daemon_threads = True
    standin.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield standin
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
