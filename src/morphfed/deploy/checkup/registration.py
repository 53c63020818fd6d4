"""Whether the coordinator's server lets this site's key in: the site activates itself and leaves again."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from morphfed.core.check import Check
from morphfed.core.errors import LinkError

if TYPE_CHECKING:
    from morphfed.deploy.checkup.line import Target

NAME = "key"


def registration(target: Target, *, alone: bool) -> Check:
    """Try to be let in.

    Args:
        target: with the site's certificate and key.
        alone: whether it is known that no site process uses this key now.
    """
    if find_spec("flwr") is None:
        return Check(NAME, "WARN", "not tried: flwr is not installed", "pip install 'morphfed[flower]'")
    from morphfed.federation.transports.flower.fleet import Credentials, FleetLine

    assert target.certificate is not None
    assert target.key is not None
    credentials = Credentials(target.host, target.port, target.authority, target.certificate, target.key)
    try:
        with FleetLine(credentials):
            return Check(NAME, "PASS", "registered: the coordinator let this site in, and out again")
    except LinkError as cause:
        response: Any = getattr(cause.__cause__, "response", None)
        return refused(response.status_code if response is not None else 0, cause, alone=alone)


def refused(status: int, cause: LinkError, *, alone: bool) -> Check:
    """What an answer other than a welcome means."""
    if status in (502, 503, 504):
        return Check(
            NAME,
            "WARN",
            "not known yet: the coordinator is not running behind its proxy",
            "nothing has to be done here; try again when `morphfed coordinator start` runs there.",
        )
    if status == 412:
        return Check(
            NAME,
            "FAIL" if alone else "WARN",
            "not let in: the key is not registered, or a process connected with it until a minute ago",
            "if `morphfed site join` runs with this bundle, all is well; else try again in a minute, then ask the "
            "coordinator, who starts again after `federation renew`.",
        )
    return Check(NAME, "FAIL", cause.message, cause.fix)
