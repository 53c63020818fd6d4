"""Serves the page and the status document on this machine's loopback: four paths, GET and HEAD, nothing else.

Every user of this machine can open it. It names sites and figures that `federation status` names too, no images and no
secrets, and it changes nothing.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from morphfed.core.errors import ConfigError, MorphfedError, StorageError
from morphfed.deploy.status import condition, exit_code, read_status

HERE = Path(__file__).parent
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
DOCUMENT = "/status.json"
NAMES = frozenset({"127.0.0.1", "localhost"})
"""What a browser may call this server. A page from elsewhere that lets its own name point here is refused (DNS
rebinding); the port may differ, as through a tunnel of ssh."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class PageServer(ThreadingHTTPServer):
    """The server of one federation's page.

    Args:
        folder: the federation's.
        port: on 127.0.0.1; 0: any that is free.

    Raises:
        ConfigError: the folder is no federation's, or the port is none.
        StorageError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int) -> None:
        read_status(folder)  # refused now rather than at the first request
        self.folder = folder
        self.files = {path: ((HERE / name).read_bytes(), kind) for path, (name, kind) in FILES.items()}
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OverflowError as cause:
            raise ConfigError(f"{port} is no port.", fix="name one from 1024 to 65535 with --port.") from cause
        except OSError as cause:
            raise StorageError(
                f"Port {port} of this machine cannot be used: {cause.strerror}.", fix="name another one with --port."
            ) from cause

    @property
    def address(self) -> str:
        """For a browser on this machine."""
        return f"http://127.0.0.1:{self.server_address[1]}/"


def document(folder: Path) -> bytes:
    """What the page asks for every two seconds.

    Raises:
        MorphfedError: the status document cannot be read.
    """
    status = read_status(folder)
    told = {
        "condition": condition(status),
        "exit_code": exit_code(status),
        "now": datetime.now(UTC).isoformat(timespec="seconds"),
        "folder": folder.name,
        "status": None if status is None else status.model_dump(mode="json"),
    }
    return json.dumps(told, ensure_ascii=False).encode()


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "morphfed", ""
    timeout = 10  # seconds that a silent connection is kept

    def parse_request(self) -> bool:
        """Refuse what is not asked for before anything is looked at."""
        if not super().parse_request():
            return False
        if self.command not in ("GET", "HEAD"):
            self.send_error(HTTPStatus.METHOD_NOT_ALLOWED, "this page is read-only")
            return False
        name, _, port = self.headers.get("Host", "").partition(":")
        if name.lower() not in NAMES or not (port.isdigit() or not port) or len(self.headers.get_all("Host") or ()) > 1:
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "open this page as http://127.0.0.1 or http://localhost")
            return False
        return True

    def do_GET(self) -> None:
        """Answer with a file, or the document."""
        if self.path == DOCUMENT:
            try:
                self._answer(document(self.server.folder), "application/json")
            except MorphfedError as cause:
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=cause.message)
        elif self.path in self.server.files:
            self._answer(*self.server.files[self.path])
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_HEAD(self) -> None:
        """The same without content."""
        self.do_GET()

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def end_headers(self) -> None:
        """Every answer, errors too, with the same rules for the browser."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing is written: requests come every two seconds."""
