"""``morphfed federation``: set a federation over a network up, and look after it."""

from __future__ import annotations

import sys
from pathlib import Path

import cyclopts

app = cyclopts.App(name="federation", help="Set up, watch and look after a federation over a network.")


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


@app.command
def status(folder: Path, /, *, json: bool = False) -> int:
    """Show once how far a federation is, who is there, and what was said last. Leaves with its exit code if it failed.

    Args:
        folder: the federation's, at the coordinator.
        json: print the status document as JSON.
    """
    from morphfed.cli.watch import as_json, snapshot
    from morphfed.deploy.status import exit_code, read_status

    found = read_status(folder)
    sys.stdout.write(as_json(found) + "\n" if json else "\n".join(snapshot(found, folder, ledgers=True)) + "\n")
    return exit_code(found) if found is not None and found.ended == "failed" else 0


@app.command
def watch(folder: Path, /, *, once: bool = False, json: bool = False, serve: bool = False, port: int = 8765) -> int:
    """Watch a federation from any terminal of the coordinator's machine; nothing is changed.

    Ends with the run, with its exit code. Away from a terminal it writes a line when something changes.

    Args:
        folder: the federation's, at the coordinator.
        once: show it once and leave.
        json: print the status document as JSON, a line each time that it changes.
        serve: show it as a page in a browser of this machine instead, until Ctrl-C.
        port: of that page, on 127.0.0.1 only.
    """
    from morphfed.cli.watch import follow

    if once:
        return status(folder, json=json)
    try:
        return _serve(folder, port) if serve else follow(folder, json=json)
    except KeyboardInterrupt:
        sys.stderr.write("left; the federation goes on.\n")
        return 0


def _serve(folder: Path, port: int) -> int:
    from morphfed.deploy.page.server import PageServer

    with PageServer(folder, port) as server:
        sys.stdout.write(f"{server.address}   for browsers on this machine; Ctrl-C ends it\n")
        sys.stdout.flush()
        server.serve_forever()
    return 0


@app.command
def stop(folder: Path, /) -> int:
    """Stop a running coordinator; finished rounds stay, and `coordinator start` goes on from them.

    Args:
        folder: the federation's, at the coordinator.
    """
    import os
    import signal
    import time

    from morphfed.core.errors import FederationError
    from morphfed.deploy.status import alive, read_status

    found = read_status(folder)
    if found is None or found.ended is not None or not alive(found.pid):
        raise FederationError(
            f"No coordinator runs in {folder}.", fix="`morphfed federation status` says how it ended."
        )
    try:
        os.kill(found.pid, signal.SIGTERM)
    except PermissionError as cause:
        raise FederationError(
            f"The coordinator (process {found.pid}) is another user's.", fix="stop it as that user, or as root."
        ) from cause
    for _ in range(300):
        if not alive(found.pid):
            sys.stdout.write("stopped; finished rounds are saved.\n")
            return 0
        time.sleep(0.1)
    raise FederationError(
        f"The coordinator (process {found.pid}) has not stopped in 30 s.", fix=f"look at process {found.pid}."
    )


@app.command
def revoke(folder: Path, site: str, /, *, key: Path | None = None) -> int:
    """Shut a site out: its certificate no longer counts once nginx is reloaded.

    Args:
        folder: the federation's, at the coordinator.
        site: its name.
        key: the authority's key, ca.key, if it is not in FOLDER/ca.
    """
    from morphfed.deploy.revocation import RELOAD
    from morphfed.deploy.revocation import revoke as shut_out

    done = shut_out(folder, site, key=key)
    sys.stdout.write(
        f"'{site}' was on the list already (certificate {done.serial:x}).\n"
        if done.already
        else f"revoked: '{site}', certificate {done.serial:x}; written to {done.path}\n"
    )
    sys.stdout.write(
        f"next: {RELOAD}   (until then it is still let in)\n"
        "A running federation names the site as not connected and goes on with the others, if they reach the quorum.\n"
        "To let it in again: morphfed federation renew.\n"
    )
    return 0


@app.command
def renew(folder: Path, site: str = "", /, *, server: bool = False, key: Path | None = None, days: int = 397) -> int:
    """Make new keys and certificates before the old ones end: of a site (a new bundle), or of the server.

    Args:
        folder: the federation's, at the coordinator.
        site: its name; its old certificate is revoked.
        server: renew the server's certificate instead.
        key: the authority's key, ca.key, if it is not in FOLDER/ca.
        days: that the new certificate is valid.
    """
    from morphfed.core.errors import ConfigError
    from morphfed.deploy.revocation import RELOAD, renew_server, renew_site

    if bool(site) == server:
        raise ConfigError("Whose certificate?", fix="name a site, or --server.")
    if server:
        until = renew_server(folder, key=key, days=days)
        sys.stdout.write(f"the server's certificate is new and ends on {until:%Y-%m-%d}; sites need nothing new\n")
        sys.stdout.write(f"next: {RELOAD}, then stop and start the coordinator\n")
        return 0
    bundle = renew_site(folder, site, key=key, days=days)
    sys.stdout.write(f"new bundle for {site}: {bundle}; its old certificate is revoked\n")
    sys.stdout.write(
        f"next: {RELOAD}; stop and start the coordinator, which registers the new key; give the bundle to the site, "
        f"which joins with it into the same folder; delete it here\n"
    )
    return 0
