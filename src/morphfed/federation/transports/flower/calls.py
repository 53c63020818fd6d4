"""HTTP calls that are tried again while the network is away, and their failures in words."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx

from morphfed.core.errors import LinkError

T = TypeVar("T")

_EARLY, _LATE = 5, 300
"""Seconds that a site's clock may be ahead and behind: Flower's bounds on a signed time, less a message's way."""

_AWAY = frozenset({500, 502, 503, 504})
"""500: on a busy machine the server's database is locked at times; what it was asked has not happened then."""


class Retry:
    """Tries a call again while the other end cannot be reached, for a limited time.

    In place of Flower's own, which tries for ever and ends the process on a refusal.

    Args:
        seconds: after which the last failure is raised.
        hope: whether it can still succeed.
    """

    def __init__(self, seconds: float, hope: Callable[[], bool] = lambda: True) -> None:
        self.seconds, self._hope = seconds, hope

    def invoke(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call, again if need be.

        Raises:
            httpx.HTTPError: the last failure.
        """
        end, wait = time.monotonic() + self.seconds, 0.2
        while True:
            try:
                return call(*args, **kwargs)
            except httpx.HTTPError as cause:
                if not _may_heal(cause) or not self._hope() or time.monotonic() + wait > end:
                    raise
            time.sleep(wait)
            wait = min(2 * wait, 10.0)


def _may_heal(cause: httpx.HTTPError) -> bool:
    if isinstance(cause, httpx.HTTPStatusError):
        return cause.response.status_code in _AWAY
    return isinstance(cause, httpx.TransportError) and not _certificate(cause)


def _certificate(cause: Exception) -> bool:
    """Whether the two ends do not agree on TLS; a connection that is torn in a handshake is another matter."""
    said = str(cause).lower()
    if any(word in said for word in ("eof", "closed", "reset")):
        return False
    return any(word in said for word in ("certificate", "ssl", "tls"))


@contextmanager
def as_link_errors(where: str) -> Iterator[None]:
    """Failures of calls to ``where`` as errors that say what to do."""
    try:
        yield
    except httpx.HTTPStatusError as cause:
        raise _refused(where, cause) from cause
    except httpx.HTTPError as cause:
        raise _unreached(where, cause) from cause
    except ValueError as cause:  # Flower's word for an answer that is not its own
        raise LinkError(f"{where} answers something else than Flower.", fix="check the address and port.") from cause


def _refused(where: str, cause: httpx.HTTPStatusError) -> LinkError:
    status = cause.response.status_code
    said = " ".join(re.sub(r"<[^>]*>", " ", cause.response.text[:600]).split())  # a proxy answers with a page
    skew = _ahead(cause.response)
    if status == httpx.codes.UNAUTHORIZED and not -_LATE < skew < _EARLY:
        way = "ahead of" if skew > 0 else "behind"
        return LinkError(
            f"{where} does not accept a clock that is wrong: this machine's is {_span(abs(skew))} {way} the "
            "coordinator's.",
            fix=f"set the clock, for example with `timedatectl set-ntp true`; it may be {_EARLY} seconds ahead and "
            f"{_LATE} behind. The site goes on by itself then.",
        )
    fixes = {
        400: "the proxy did not accept this site's certificate: it may have expired or been revoked. Ask the "
        "coordinator for a new bundle",
        401: "the key is not this site's: use the bundle that the coordinator gave, or ask for a new one",
        403: "the run is over, or the site has no part in it; nothing has to be done while the coordinator restarts",
        404: "the address is not that of a federation's proxy, or the versions of flwr differ",
        412: "the coordinator does not know this site's key, or another process takes part with it: if one was killed, "
        "it is let in again within a minute",
        502: "the coordinator is not running; nothing has to be done here until it is",
        413: "the proxy's client_max_body_size is too small: use the configuration that `federation init` wrote",
    }
    return LinkError(f"{where} answers {status}: {said}.", fix=fixes.get(status, "look at the coordinator's log") + ".")


def _ahead(response: httpx.Response) -> float:
    """Seconds by which this machine's clock is ahead of the one that dated a response; 0: it has no date."""
    try:
        return _now() - parsedate_to_datetime(response.headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return 0.0


def _now() -> float:
    return time.time()


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def _unreached(where: str, cause: httpx.HTTPError) -> LinkError:
    said = str(cause) or type(cause).__name__
    if _certificate(cause):
        fix = (
            "the server's certificate is not of this federation, is for another name, or has expired; or this "
            "machine's clock is wrong. Check the address, then ask the coordinator."
        )
    else:
        fix = "check that the coordinator runs, its name resolves here, and the firewall lets this connection out."
    return LinkError(f"{where} cannot be reached: {said}.", fix=fix)
