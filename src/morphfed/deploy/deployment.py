"""What everything needs that the coordinator does over a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from morphfed.core.progress import Reporter, silent

if TYPE_CHECKING:
    from morphfed.deploy.agreed import Agreed
    from morphfed.deploy.provision import FederationSettings
    from morphfed.deploy.recorder import Recorder
    from morphfed.federation.transports.link import Link


@dataclass(frozen=True)
class Deployment:
    """A federation whose sites can be asked.

    Attributes:
        link: reaches the sites.
        agreed, settings: what is trained, and how long is waited.
        run: folder of the federation's run.
        recorder: keeps the status document.
        report: progress.
    """

    link: Link
    agreed: Agreed
    settings: FederationSettings
    run: Path
    recorder: Recorder | None = None
    report: Reporter = silent
