"""How the sites stand with the question at hand, for whoever watches a federation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Fault = Literal["", "refused", "unusable", "missed"]
"""Why a site's last answer is none: it said no; it cannot be used; it did not come in time."""


@dataclass(frozen=True)
class Standing:
    """One site.

    Attributes:
        connected: whether it can be reached now.
        seen: when it was last heard of, seconds since the epoch; None: never.
        asked: when its question was posted, seconds since the epoch; None: no question of this step is posted to it.
        answered: when its answer came; None: it has not, or was given up.
        until: when the step goes on without it; None: it is not waited for.
        fault, why: of its last answer, until it gives a usable one.
        sent, received: bytes of parcels to and from it since the contact was opened.
        ledger: last hash of its ledger.
    """

    connected: bool
    seen: float | None = None
    asked: float | None = None
    answered: float | None = None
    until: float | None = None
    fault: Fault = ""
    why: str = ""
    sent: int = 0
    received: int = 0
    ledger: str = ""


@dataclass(frozen=True)
class Look:
    """One look at all sites.

    Attributes:
        now: seconds since the epoch.
        step: what is waited for, such as ``round 7`` or ``start``.
        sites: by name, in the study's order.
    """

    now: float
    step: str
    sites: Mapping[str, Standing]

    @property
    def waiting(self) -> list[str]:
        """Sites whose answer the step waits for."""
        return [name for name, site in self.sites.items() if site.until is not None]


Observer = Callable[[Look], None]
"""Called at every look at the network, about twice a second; must return quickly."""
