"""From this machine to the federation's proxy: name, port, TLS, certificate, clock, speed.

Each step stands on the one before. Nothing is sent but a request for ``/`` and, for the speed, bytes without meaning to
one of the paths that the proxy lets through; the coordinator's server refuses them.
"""

from __future__ import annotations

import base64
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from morphfed.core.check import Check

SOON = 30
"""Days before its end at which a certificate is warned about."""

AHEAD, BEHIND = 5.0, 300.0
"""Seconds by which a site's clock may differ from the coordinator's: Flower's server refuses a call that was signed in
its future, or too long ago."""

SLOWEST = 0.1e6
"""Bits per second below which nobody has taken part yet; twice as much is measured (docs/performance.md)."""

_PATH = "/v1/fleet/push-object"
_STEPS = (1 << 17, 1 << 20, 4 << 20)  # bytes sent for the speed, one after the other; the proxy takes 8 MiB
_ENOUGH = 1.5  # seconds after which no larger step is tried


@dataclass(frozen=True)
class Target:
    """Where a site connects to, and as whom.

    Attributes:
        host, port: of the proxy.
        authority: certificate that the server's must be signed by.
        certificate, key: the site's own; None: at the coordinator, which has none.
        timeout: seconds for one step.
    """

    host: str
    port: int
    authority: Path
    certificate: Path | None = None
    key: Path | None = None
    timeout: float = 10.0

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Answer:
    """What the proxy answered to a request for ``/``."""

    status: int
    text: str
    date: datetime | None
    offset: float | None
    """Seconds by which this machine's clock is ahead."""


class UnreachedError(Exception):
    """A step failed; the ones after it cannot be looked at."""

    def __init__(self, check: Check) -> None:
        super().__init__(check.found)
        self.check = check


def checks(target: Target, *, now: Callable[[], float] = time.time) -> Iterator[Check]:
    """The steps up to the first that fails.

    Args:
        target: where to.
        now: this machine's clock.

    Raises:
        UnreachedError: a step failed; its check is not yielded.
    """
    proxy = forward_proxy(target)
    yield _proxies(proxy, target)
    yield _name(target, proxy)
    yield _port(target, proxy)
    with closing(_connection(target, proxy, now)) as connection:
        yield _server(target, connection, now())
        answer = _answer(target, connection, now)
    yield _certificate(target, answer)
    if target.certificate is not None:
        yield _clock(answer)


# ── the steps ───────────────────────────────────────────────────────────────────────────────────────────────
def forward_proxy(target: Target) -> tuple[str, int, str] | None:
    """Host, port and login of the proxy through which this machine reaches the target, None: directly."""
    found = getproxies()
    address = found.get("https") or found.get("all")
    if not address or proxy_bypass(target.host):
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    login = f"{parts.username}:{parts.password or ''}" if parts.username else ""
    return parts.hostname or "", parts.port or 3128, login


def _proxies(proxy: tuple[str, int, str] | None, target: Target) -> Check:
    if proxy is None:
        return Check("outgoing proxy", "PASS", f"none is set for {target.host}")
    return Check(
        "outgoing proxy",
        "WARN",
        f"the environment sends connections to {target.host} through {proxy[0]}:{proxy[1]}",
        f"it must let CONNECT {target.where} through and leave TLS alone; if it need not be used: "
        f"export NO_PROXY={target.host}",
    )


def _name(target: Target, proxy: tuple[str, int, str] | None) -> Check:
    host, port = proxy[:2] if proxy else (target.host, target.port)
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (socket.gaierror, UnicodeError) as cause:
        raise UnreachedError(
            Check(
                "name",
                "FAIL",
                f"{host} is not known here: {getattr(cause, 'strerror', None) or cause}",
                "compare the name with the coordinator's, and ask your network's administrators whether this machine "
                "may resolve it.",
            )
        ) from cause
    return Check("name", "PASS", f"{host} is {', '.join(sorted(found))}")


def _port(target: Target, proxy: tuple[str, int, str] | None) -> Check:
    host, port = proxy[:2] if proxy else (target.host, target.port)
    started = time.monotonic()
    try:
        socket.create_connection((host, port), timeout=target.timeout).close()
    except TimeoutError as cause:
        raise _failed(
            "port",
            f"no answer from {host}:{port} in {target.timeout:.0f} s: a firewall drops the connection",
            f"ask your network's administrators to let this machine out to {host}, TCP port {port}.",
        ) from cause
    except ConnectionRefusedError as cause:
        raise _failed(
            "port",
            f"{host} refuses port {port}: nothing listens there",
            "compare the port with the coordinator's; there, look whether nginx runs.",
        ) from cause
    except OSError as cause:
        raise _failed(
            "port", f"{host}:{port} cannot be reached: {cause.strerror or cause}", "ask your network's administrators."
        ) from cause
    return Check("port", "PASS", f"{host}:{port} answers in {1000 * (time.monotonic() - started):.0f} ms")


def _connection(
    target: Target, proxy: tuple[str, int, str] | None, now: Callable[[], float] = time.time
) -> HTTPSConnection:
    """A connection after its TLS handshake.

    Raises:
        UnreachedError: says why there is none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=target.authority)
        if target.certificate is not None:
            context.load_cert_chain(target.certificate, target.key)
    except (ssl.SSLError, OSError) as cause:
        raise _failed("tls", f"this machine's certificates cannot be used: {cause}", "ask for a new bundle.") from cause
    connection = HTTPSConnection(*(proxy[:2] if proxy else (target.host, target.port)), context=context)
    connection.timeout = target.timeout
    if proxy:
        login = {"Proxy-Authorization": "Basic " + base64.b64encode(proxy[2].encode()).decode()} if proxy[2] else {}
        connection.set_tunnel(target.host, target.port, headers=login)
    try:
        connection.connect()
    except ssl.SSLCertVerificationError as cause:
        raise UnreachedError(_not_trusted(target, proxy, cause, now())) from cause
    except ssl.SSLError as cause:
        raise _failed(
            "tls",
            f"{target.where} does not speak TLS as it should: {cause.reason or cause}",
            "compare the port with the coordinator's; or a device on the way cuts in: ask your network's "
            "administrators.",
        ) from cause
    except (OSError, HTTPException) as cause:
        raise _failed(
            "tls",
            f"{target.where}: the connection breaks off: {cause}",
            "ask your network's administrators whether a firewall or proxy on the way forbids it.",
        ) from cause
    return connection


def _not_trusted(
    target: Target, proxy: tuple[str, int, str] | None, cause: ssl.SSLCertVerificationError, now: float
) -> Check:
    """Why the server's certificate does not count, and what it says of itself."""
    shown = "" if proxy else _shown(target)
    here = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC"
    fixes = {
        9: f"this machine's clock says {here}: set it; if it is right, ask the coordinator.",
        10: f"this machine's clock says {here}; if it is right, the coordinator runs "
        "`morphfed federation renew FOLDER --server`.",
        62: f"the certificate is for another name than {target.host}: use the name that `federation init --host` got.",
        64: f"the certificate is for another name than {target.host}: use the name that `federation init --host` got.",
    }
    fix = fixes.get(
        cause.verify_code,
        "it is not signed by this federation's authority: a wrong address, a bundle of another federation, or a "
        "device on the way that reads TLS; ask your network's administrators for an exception for "
        f"{target.where}.",
    )
    return Check("tls", "FAIL", f"the server's certificate does not count: {cause.verify_message}{shown}", fix)


def _shown(target: Target) -> str:
    """What a certificate that was not accepted says of itself."""
    try:
        from cryptography import x509

        pem = ssl.get_server_certificate((target.host, target.port), timeout=target.timeout)
        found = x509.load_pem_x509_certificate(pem.encode())
    except (ImportError, OSError, ValueError):
        return ""
    dates = f"{found.not_valid_before_utc:%Y-%m-%d} to {found.not_valid_after_utc:%Y-%m-%d}"
    return f" (for {found.subject.rfc4514_string()}, by {found.issuer.rfc4514_string()}, {dates})"


def _server(target: Target, connection: HTTPSConnection, now: float) -> Check:
    assert isinstance(connection.sock, ssl.SSLSocket)
    told = connection.sock.getpeercert() or {}
    until = ssl.cert_time_to_seconds(str(told["notAfter"]))
    days = (until - now) / 86400
    found = f"{connection.sock.version()}, server's certificate is good until {datetime.fromtimestamp(until):%Y-%m-%d}"
    if days < SOON:
        return Check(
            "tls",
            "WARN",
            f"{found}, {days:.0f} days",
            "at the coordinator: morphfed federation renew FOLDER --server; sites need nothing new.",
        )
    return Check("tls", "PASS", found)


def _answer(target: Target, connection: HTTPSConnection, now: Callable[[], float]) -> Answer:
    try:
        before = now()
        connection.request("GET", "/")
        got = connection.getresponse()
        after = now()
        text = got.read(4096).decode(errors="replace")
    except (OSError, HTTPException) as cause:
        raise _failed(
            "certificate",
            f"the proxy breaks off after the handshake: {cause}",
            "ask the coordinator whether this site's certificate was revoked.",
        ) from cause
    date = offset = None
    with suppress(TypeError, ValueError):
        date = parsedate_to_datetime(got.headers["Date"])
        offset = (before + after) / 2 - (date.timestamp() + 0.5)  # the header is cut to whole seconds
    return Answer(got.status, text, date, offset)


def _certificate(target: Target, answer: Answer) -> Check:
    """Whether the proxy takes this site's certificate; at the coordinator: whether it wants one."""
    asked = answer.status == 400 and "certificate" in answer.text.lower()
    if target.certificate is None:
        if asked:
            return Check("strangers", "PASS", "the proxy turns away who has no certificate")
        return Check(
            "strangers",
            "FAIL",
            f"the proxy answers {answer.status} to a connection without a certificate",
            "it is not nginx with the configuration that `federation init` wrote, or that was changed: "
            "ssl_verify_client must be on.",
        )
    if asked:
        raise _failed(
            "certificate",
            "the proxy does not accept this site's certificate: revoked, ended, or another federation's",
            "ask the coordinator for a new bundle: morphfed federation renew FOLDER SITE.",
        )
    if answer.status != 404:
        return Check(
            "certificate",
            "WARN",
            f"the proxy answers {answer.status} to a request for '/', a federation's answers 404",
            "compare host and port with the coordinator's.",
        )
    return Check("certificate", "PASS", "the proxy lets this site in")


def _clock(answer: Answer) -> Check:
    if answer.offset is None:
        return Check("clock", "WARN", "the proxy does not tell its time", "compare the clocks by hand.")
    ahead = answer.offset
    found = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    limits = f"at most {AHEAD:.0f} s ahead and {BEHIND / 60:.0f} min behind are accepted"
    fix = f"set the clock, by NTP: timedatectl set-ntp true ({limits})"
    if ahead > AHEAD or -ahead > BEHIND:
        return Check("clock", "FAIL", found, fix)
    if ahead > AHEAD / 2 or -ahead > BEHIND / 5:
        return Check("clock", "WARN", found, fix)
    return Check("clock", "PASS", "as the coordinator's, to 2 s" if abs(ahead) < 2 else found)


def _failed(name: str, found: str, fix: str) -> UnreachedError:
    return UnreachedError(Check(name, "FAIL", found, fix))


# ── the speed ───────────────────────────────────────────────────────────────────────────────────────────────
def upload_speed(target: Target) -> tuple[float, int]:
    """Bits per second from here to the proxy, and the bytes of the largest step that it was measured with.

    Raises:
        UnreachedError: the transfer broke off, or the proxy does not let its path through.
    """
    proxy = forward_proxy(target)
    with closing(_connection(target, proxy)) as connection:
        assert connection.sock is not None
        connection.sock.settimeout(60.0)
        rate, moved = 0.0, 0
        for size in _STEPS:
            seconds = _send(target, connection, size)
            rate, moved = 8 * size / seconds, size
            if seconds > _ENOUGH:
                break
    return rate, moved


def _send(target: Target, connection: HTTPSConnection, size: int) -> float:
    """Seconds for a body of so many bytes; the proxy takes it in before it passes it on."""
    body = os.urandom(size)  # nothing on the way can squeeze it
    started = time.perf_counter()
    try:
        connection.request("POST", _PATH, body=body, headers={"Content-Type": "application/octet-stream"})
        got = connection.getresponse()
        got.read()
    except (OSError, HTTPException) as cause:
        raise _failed(
            "speed",
            f"the transfer of {size >> 10} KiB to {target.where} broke off: {cause}",
            "try again; if it stays so, ask your network's administrators.",
        ) from cause
    if got.status in (403, 404, 413):
        raise _failed(
            "speed",
            f"the proxy answers {got.status} to {_PATH}",
            "use the configuration that `federation init` wrote for nginx.",
        )
    return time.perf_counter() - started
