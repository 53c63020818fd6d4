"""``morphfed federation``: set a federation over a network up, and look after it."""

from __future__ import annotations

import sys
from pathlib import Path

import cyclopts

app = cyclopts.App(name="federation", help="Set up a federation over a network, and see how it does.")


@app.command
def init(folder: Path, /, *, study: Path, host: str, port: int = 443, inner_port: int = 8000, days: int = 397) -> int:
    """Write keys, certificates, a join bundle for each site, services, proxy configuration and instructions.

    Args:
        folder: a new folder at the coordinator.
        study: the study file that the sites are going to train.
        host: name or address under which sites reach the coordinator.
        port: of the reverse proxy, the only one that is open to the outside.
        inner_port: of Flower's server on the loopback.
        days: that certificates of server and sites are valid.
    """
    from morphfed.deploy.provision import init as write

    made = write(folder, study, host=host, port=port, inner_port=inner_port, days=days)
    sys.stdout.write(f"study {made.agreed.study.name}, hash {made.agreed.hash}\n")
    for bundle in made.bundles:
        sys.stdout.write(f"bundle for {bundle.stem}: {bundle}\n")
    sys.stdout.write(f"certificates end on {made.until:%Y-%m-%d}\nnext: read {made.folder / 'README.md'}\n")
    return 0
