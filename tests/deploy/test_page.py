"""The page of `federation watch --serve`: four paths, read-only, for this machine's browsers only."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from tests.deploy.statuses import running
from tests.deploy.test_status import _seen, write

from morphfed.core.errors import ConfigError, StorageError
from morphfed.deploy.page.server import DOCUMENT, FILES, HERE, PageServer

__all__ = ["_seen"]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[PageServer]:
    with PageServer(write(tmp_path, running()), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(5)


def ask(page: PageServer, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", page.server_address[1], timeout=5)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def test_the_page_and_its_document(page: PageServer) -> None:
    for path, (name, kind) in FILES.items():
        answer, content = ask(page, path)
        assert (answer.status, answer.headers["content-type"]) == (200, kind)
        assert content == (HERE / name).read_bytes()
    told = json.loads(ask(page, DOCUMENT)[1])
    assert told["condition"] == "running"
    assert told["status"] == running().model_dump(mode="json")
    answer, content = ask(page, "/", "HEAD")
    assert (answer.status, content) == (200, b"")


@pytest.mark.parametrize("path", ["/", DOCUMENT, "/nothing"])
def test_every_answer_forbids_what_the_page_does_not_need(path: str, page: PageServer) -> None:
    for method in ("GET", "POST"):
        headers = ask(page, path, method)[0].headers
        assert headers["content-security-policy"].startswith("default-src 'none'; ")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["server"].strip() == "morphfed"
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_other_methods_are_refused(method: str, page: PageServer) -> None:
    for path in ("/", DOCUMENT, "/nothing"):
        assert ask(page, path, method)[0].status == 405


@pytest.mark.parametrize(
    "path",
    [
        "/index.html",
        "/status.json/",
        "/status.json?x=1",
        "/../status.json",
        "/page.html",
        "/server.py",
        "/%2e%2e/federation.toml",
        "/ca/ca.key",
        "http://127.0.0.1/",
        "*",
    ],
)
def test_other_paths_are_refused(path: str, page: PageServer) -> None:
    assert ask(page, path)[0].status == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("LOCALHOST", 200),
        ("localhost:9000", 200),  # through a tunnel of ssh
        ("evil.example:{port}", 421),  # a name that its owner let point here
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:{port}", 421),
        ("localhost:80:evil", 421),
        ("192.168.1.5:{port}", 421),
        ("", 421),
    ],
)
def test_names_that_are_not_this_machines_are_refused(host: str, status: int, page: PageServer) -> None:
    for path in ("/", DOCUMENT):
        assert ask(page, path, Host=host.format(port=page.server_address[1]))[0].status == status


def test_it_listens_on_the_loopback_only(page: PageServer) -> None:
    assert page.server_address[0] == "127.0.0.1"


def test_a_request_without_a_name_or_that_is_none_is_refused(page: PageServer) -> None:
    for raw in (b"GET / HTTP/1.1\r\n\r\n", b"GET /\r\n\r\n", b"\x16\x03\x01\r\n\r\n"):
        with socket.create_connection(page.server_address[:2], timeout=5) as plain:
            plain.sendall(raw)
            answer = b""
            while part := plain.recv(4096):
                answer += part
        assert b" 200 " not in answer
        assert b"four-labs" not in answer


def test_a_document_that_cannot_be_read_is_said(page: PageServer) -> None:
    (page.folder / "run/status.json").write_text("{")
    assert ask(page, DOCUMENT)[0].status == 503
    (page.folder / "run/status.json").unlink()
    told = json.loads(ask(page, DOCUMENT)[1])
    assert (told["condition"], told["status"]) == ("not started", None)


def test_a_port_that_is_taken_and_a_folder_that_is_none(page: PageServer, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"Port \d+ of this machine cannot be used"):
        PageServer(tmp_path, page.server_address[1])
    with pytest.raises(ConfigError, match="is no port"):
        PageServer(tmp_path, 70_000)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no federation's folder"):
        PageServer(tmp_path / "empty", 0)


def test_the_files_need_nothing_from_elsewhere() -> None:
    every = {name: (HERE / name).read_text() for name, _ in FILES.values()}
    outside = r"https?://(?!www\.w3\.org/2000/svg)|(?<!:)//[a-z]+\.|@import|url\("
    assert not {name: found for name, text in every.items() if (found := re.findall(outside, text))}
    html, script = every["page.html"], every["page.js"]
    # What the policy would block: inline scripts, inline styles, handlers in attributes.
    assert not re.findall(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", html)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\.style\b", script)
    assert set(re.findall(r'(?:src|href)="(/[^"]*)"', html)) == set(FILES) - {"/"}


def _luminance(colour: str) -> float:
    """Relative, of a colour such as #1a2b3c or #abc (WCAG 2.2)."""
    full = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(full[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_can_be_read_on_its_ground(theme: str) -> None:
    css = (HERE / "page.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", light if theme == "light" else dark))
    grounds = {
        "ink": ["paper", "card", "bad-back", "warn-back"],
        "quiet": ["paper", "card"],
        "bad": ["bad-back", "card"],
    }
    grounds |= {"good": ["good-back"], "warn": ["warn-back", "paper"], "off": ["off-back"], "accent": ["work-back"]}
    for text, behind in grounds.items():
        for ground in behind:
            low, high = sorted((_luminance(colours[text]), _luminance(colours[ground])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{text} on {ground}"
