"""The one place that knows Flower: parcels as its messages, its Grid as a link, its Fleet interface as a line.

Flower reads its environment when it is imported, so it is set here, before.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

from morphfed.core.errors import MissingExtraError

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""Flower sends nothing to its makers, asks for no newer version and installs nothing."""

SMALLEST, LARGEST = 1 << 17, 1 << 22
"""Bytes of the objects into which messages are cut; one that was cut off begins again. Flower drops a message when none
of its objects was finished for 180 s, and two are on their way at a time: 128 KiB will do down to 12 kbit/s."""

os.environ.update(QUIET)

if find_spec("flwr") is None:
    raise MissingExtraError(
        "A federation over a network needs the extra 'flower'.", fix="pip install 'morphfed[flower]'"
    )
