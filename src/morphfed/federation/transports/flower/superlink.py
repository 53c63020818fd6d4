"""The process of Flower's server: its own program, with what a federation of hospitals needs changed.

python -m morphfed.federation.transports.flower.superlink FLAGS OF flower-superlink
"""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from morphfed.core.memory import keep_freed_memory

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_PATIENCE_MS = 60_000
_LARGEST_BODY = 8 << 20  # as the proxy's client_max_body_size
_PAGE = "65536"  # counts for a new database only
_PR_SET_PDEATHSIG = 1


class WholeBodies:
    """Hands each request's body on in one piece.

    A body of some MiB comes in pieces of 64 KiB, and each of them takes its way through all layers of Flower's server:
    a tenth of the server's time in a round of two sites with 85 MB.

    Args:
        app: an ASGI application.
        limit: bytes of the largest body; a larger one is refused with 413.
    """

    def __init__(self, app: App, limit: int = _LARGEST_BODY) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request; what is no request (the server's start and end) goes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > self._limit:
                await send({"type": "http.response.start", "status": 413, "headers": [(b"connection", b"close")]})
                await send({"type": "http.response.body", "body": b"too large"})
                return
        body: Message | None = {"type": "http.request", "body": b"".join(parts), "more_body": False}
        parts.clear()

        async def whole() -> Message:
            nonlocal body
            given, body = body, None
            return await receive() if given is None else given

        await self._app(scope, whole, send)


def main() -> None:
    """Become Flower's server; ends with the process that started this one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    keep_freed_memory()  # else the system clears new pages for every object
    import uvicorn  # type: ignore[import-not-found]
    from flwr.supercore import constant

    # A database that is locked for longer than this answers with an error; Flower's five seconds are nothing on a busy
    # disk. Objects of 4 MiB in pages of 4 KiB are thousands of reads and writes.
    changed = {"page_size": _PAGE, **dict(constant.SQLITE_PRAGMAS), "busy_timeout": str(_PATIENCE_MS)}
    constant.SQLITE_PRAGMAS = tuple(changed.items())
    serve = uvicorn.run

    def run(app: App, **options: Any) -> None:
        # A line of log for every look of every site is half a gigabyte a day.
        serve(app=WholeBodies(app), **{**options, "access_log": False})

    uvicorn.run = run
    from flwr.superlink.cli import flower_superlink

    sys.argv[0] = "flower-superlink"
    flower_superlink()


if __name__ == "__main__":
    main()
