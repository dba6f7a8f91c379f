"""Serves the live page on this machine's loopback address, and to nobody else."""

from __future__ import annotations

import contextlib
import shlex
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from analysis.live.state import Watcher
from analysis.reach.invocation import python
from analysis.reach.remote import is_url
from analysis.runs import strictjson
from analysis.runs.errors import AnalysisError

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("page.html")


def serve(source: str, port: int = 0) -> None:
    """Until Ctrl-C. Raises AnalysisError: not one sweep's folder, or the port is taken."""
    server = make_server(source, port)
    print(f"http://{HOST}:{server.server_address[1]}/ (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)
    finally:
        server.server_close()


def make_server(source: str, port: int = 0) -> ThreadingHTTPServer:
    """A server that is bound and does not serve yet; `port` 0: one that is free."""
    if is_url(source):
        raise AnalysisError(
            f"{source}: a live page needs a folder of this machine; `launch.py status` takes URLs"
        )
    watcher = Watcher(Path(source))

    class Handler(_Handler):
        watched = watcher

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise AnalysisError(f"--port {port}: cannot be had ({error})") from None
    server.daemon_threads = True
    return server


class _Handler(BaseHTTPRequestHandler):
    watched: Watcher

    def do_GET(self) -> None:
        # A page elsewhere may resolve its own name to this machine: only loopback names are answered.
        if self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost"):
            self._send(403, "text/plain", b"loopback only")
            return
        path = self.path.partition("?")[0]
        if path == "/":
            stop = f"{python()} launch.py stop {shlex.quote(str(self.watched.folder))}"
            page = PAGE.read_text(encoding="utf-8").replace("STOP_COMMAND", stop)
            self._send(200, "text/html; charset=utf-8", page.encode())
        elif path == "/state.json":
            self._send(200, "application/json", strictjson.dumps(self.watched.state()).encode())
        elif path == "/report.html":
            report = self.watched.folder / "report" / "report.html"
            there = report.is_file()
            data = report.read_bytes() if there else b"no report yet"
            self._send(200 if there else 404, "text/html; charset=utf-8", data)
        else:
            self._send(404, "text/plain", b"no such page")

    def _send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        with contextlib.suppress(ConnectionError):  # the browser was closed meanwhile
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """A look every two seconds is not worth a line."""
