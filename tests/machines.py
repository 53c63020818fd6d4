"""The machines of a federation as processes of this one: nginx, Flower, a coordinator, sites, links between them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.ports import free_port

from morphfed.cli import call
from morphfed.data.drafting import draft
from morphfed.deploy import provision

NGINX = os.environ.get("NGINX") or shutil.which("nginx")
PROGRAM = "from morphfed.cli import main; main()"


def start_nginx(federation: Path, folder: Path) -> subprocess.Popen[bytes]:
    """The written configuration inside the smallest frame that needs no root."""
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # Started by root, its worker would be nobody, who cannot write bodies of more than 16 KB into the test's folder.
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;"
        f"events {{}} http {{ access_log off; {places} include {federation}/nginx/morphfed.conf; }}"
    )
    # nginx takes a variable of this name for sockets that it inherits.
    environment = {key: value for key, value in os.environ.items() if key != "NGINX"}
    command = [str(NGINX), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False, env=environment)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen(command, start_new_session=True, env=environment)
    settings, _ = provision.read_federation(federation)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", settings.port)) == 0:
                return process
        time.sleep(0.05)
    raise AssertionError((folder / "error.log").read_text())


@dataclass
class Machines:
    """The commands of docs/how-to/federation.md, each process with a folder of its own.

    Attributes:
        study: the study's file, beside its films.
        folder: of all machines.
        host: name or address of the coordinator, as sites see it.
        prefixes: site → what its commands are started with, such as another network namespace.
        variables: site → environment beside the usual.
        waits: of `federation.toml`, in place of what `federation init` writes.
        running: the processes by name.
    """

    study: Path
    folder: Path
    host: str = "localhost"
    prefixes: dict[str, Sequence[str]] = field(default_factory=dict)
    variables: dict[str, Mapping[str, str]] = field(default_factory=dict)
    waits: dict[str, float] = field(default_factory=lambda: {"gather": 240, "absent": 45})
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def run(self, *arguments: str, check: bool = True, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PROGRAM, *arguments]
        where = folder or self.folder
        return subprocess.run(command, cwd=where, capture_output=True, text=True, check=check, timeout=900)

    def start(self, name: str, *arguments: str, folder: Path | None = None) -> None:
        self.start_command(name, [sys.executable, "-c", PROGRAM, *arguments], folder)

    def start_command(self, name: str, command: Sequence[str], folder: Path | None = None) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [*self.prefixes.get(name, ()), *command],
                cwd=folder or self.folder,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.variables.get(name, {})},
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def init(self) -> None:
        host = ("--host", self.host, "--port", str(free_port()), "--inner-port", str(free_port()))
        # In this process: another one would spend seconds on imports.
        assert call(["federation", "init", str(self.folder / "fed"), "--study", str(self.study), *host]) == 0
        path = self.folder / "fed/federation.toml"
        lines = path.read_text().splitlines()
        kept = [line for line in lines if line.split(" ")[0] not in self.waits]
        path.write_text("\n".join([*kept, *(f"{key} = {value}" for key, value in self.waits.items())]) + "\n")
        self.serve()

    def serve(self) -> None:
        """Start nginx."""
        (self.folder / "nginx").mkdir(exist_ok=True)
        self.running["nginx"] = start_nginx(self.folder / "fed", self.folder / "nginx")

    def prepare(self, site: str) -> None:
        draft(self.study.parent / "films" / site, site=site).manifest.write(self.folder / f"{site}.csv")
        assert call(["site", "approve", str(self.study), "--folder", str(self.folder / site)]) == 0

    def join(self, site: str, *more: str) -> None:
        bundle = f"fed/bundles/{site}.zip"
        self.start(site, "site", "join", bundle, "--data", f"{site}.csv", "--folder", site, *more)

    def coordinate(self) -> None:
        self.start("coordinator", "coordinator", "start", "fed")

    def server(self) -> int:
        """Process number of Flower's server, the coordinator's only child; 0: it has none now."""
        asked = ["pgrep", "-P", str(self.running["coordinator"].pid)]
        children = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
        return int(children[0]) if children else 0

    def wait(self, name: str, seconds: float) -> int:
        try:
            return self.running[name].wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} still runs:\n{self.log(name)}\n{self.log('coordinator')}") from None

    def until(self, name: str, text: str, seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while text not in self.log(name):
            assert time.monotonic() < end, f"no '{text}' in {name}:\n{self.log(name)}\n{self.log('coordinator')}"
            time.sleep(0.2)

    def kill(self, name: str) -> None:
        """As a crash or the kernel would; of nginx its worker too, as systemd does."""
        process = self.running[name]
        if name == "nginx":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.send_signal(signal.SIGKILL)
        process.wait(10)

    def stop(self) -> None:
        """End everything that still runs."""
        for process in self.running.values():
            if process.poll() is None:
                process.terminate()
        for process in self.running.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


class NoNamespaceError(Exception):
    """This machine does not let a network namespace be made, and why."""


class Namespace:
    """A network namespace with a slow way to this machine, for use in a ``with`` block. Needs root.

    Args:
        number: 0 to 255, one for each at a time.
        up, down: rates as `tc` writes them, such as ``2mbit``; None: as fast as it goes.
    """

    def __init__(self, number: int, *, up: str | None = None, down: str | None = None) -> None:
        self.name, self._inside, self._outside = f"mfnet{number}", f"mfi{number}", f"mfo{number}"
        self.host, self._own = f"10.201.{number}.1", f"10.201.{number}.2"
        self._up, self._down = up, down

    @property
    def prefix(self) -> list[str]:
        """Starts a command inside."""
        return ["ip", "netns", "exec", self.name]

    def __enter__(self) -> Namespace:
        if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
            raise NoNamespaceError("network namespaces need root, `ip` and `tc`")
        self._remove()
        inside = ["ip", "-n", self.name]
        steps = [
            ["ip", "netns", "add", self.name],
            ["ip", "link", "add", self._outside, "type", "veth", "peer", "name", self._inside, "netns", self.name],
            ["ip", "addr", "add", f"{self.host}/30", "dev", self._outside],
            ["ip", "link", "set", self._outside, "up"],
            [*inside, "addr", "add", f"{self._own}/30", "dev", self._inside],
            [*inside, "link", "set", self._inside, "up"],
            [*inside, "link", "set", "lo", "up"],
            [*inside, "route", "add", "default", "via", self.host],
        ]
        shape = ["root", "tbf", "burst", "8kb", "latency", "1s", "rate"]
        if self._down:
            steps.append(["tc", "qdisc", "add", "dev", self._outside, *shape, self._down])
        if self._up:
            steps.append(["tc", "-n", self.name, "qdisc", "add", "dev", self._inside, *shape, self._up])
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode:
                self._remove()
                raise NoNamespaceError(f"`{' '.join(step)}`: {done.stderr.strip()}")
        return self

    def cut(self) -> None:
        """Nothing goes through."""
        subprocess.run(["ip", "link", "set", self._outside, "down"], check=True)

    def heal(self) -> None:
        """It goes on."""
        subprocess.run(["ip", "link", "set", self._outside, "up"], check=True)

    def _remove(self) -> None:
        for step in (["ip", "netns", "del", self.name], ["ip", "link", "del", self._outside]):
            subprocess.run(step, capture_output=True, check=False)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()


class Relay:
    """A TCP port of the loopback that leads to another: slow, late, unreliable or cut, without root.

    Args:
        target: port to which it leads.
        rate: bytes a second of each connection and direction; None: as fast as it goes.
        delay: seconds by which everything is late, each way.
        loss: chance that a connection is torn at a piece of 16 KiB.
        seed: of the losses.
    """

    def __init__(
        self, target: int, *, rate: float | None = None, delay: float = 0.0, loss: float = 0.0, seed: int = 0
    ) -> None:
        self.rate, self.delay, self.loss, self.up, self.down, self.torn = rate, delay, loss, 0, 0, 0
        self._target, self._random, self._away = target, random.Random(seed), threading.Event()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Tear every connection, and each new one."""
        self._away.set()
        for end in list(self._open):
            self._tear(end)

    def heal(self) -> None:
        """Let connections through again."""
        self._away.clear()

    def close(self) -> None:
        """For good."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._away.is_set():
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._open |= {near, far}
            threading.Thread(target=self._pump, args=(near, far, "up"), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, "down"), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        due = time.monotonic()
        while True:
            try:
                piece = source.recv(16384)
                if not piece:
                    break
                if self.loss and self._random.random() < self.loss:
                    self.torn += 1
                    break
                time.sleep(self.delay)
                if self.rate:
                    due = max(due, time.monotonic()) + len(piece) / self.rate
                    time.sleep(max(0.0, due - time.monotonic()))
                sink.sendall(piece)
            except OSError:
                break
            setattr(self, way, getattr(self, way) + len(piece))
        self._tear(source)
        self._tear(sink)

    def _tear(self, end: socket.socket) -> None:
        self._open.discard(end)
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            end.close()
