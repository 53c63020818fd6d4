"""Flower's real server on the loopback, with TLS and keys, and bytes through it; nothing is trained."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("flwr") is None:  # not importorskip: the adapter sets what Flower reads when it is imported
    pytest.skip("the extra 'flower' is not installed", allow_module_level=True)

from tests.ports import free_port

from morphfed.core.errors import LinkError
from morphfed.deploy import keys
from morphfed.federation.transports.flower.fleet import Credentials, FleetLine
from morphfed.federation.transports.flower.grid import GridLink
from morphfed.federation.transports.flower.server import Run, Server, ServerFiles

pytestmark = pytest.mark.slow

SITES = ("alder", "birch")


class Machines:
    """Files of a server and two sites, and a thread that answers for each site."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.authority = folder, keys.make_authority("test")
        self.write("ca.crt", self.authority.certificate_pem())
        server = keys.make_server(self.authority, "localhost")
        self.write("server.crt", server.certificate_pem())
        self.write("server.key", server.key_pem())
        self.write("secret", b"5" * 64)
        self.files = ServerFiles(
            folder / "ca.crt",
            folder / "server.crt",
            folder / "server.key",
            folder / "secret",
            folder / "state",
            free_port(),
        )
        self.public = {site: self.pair(site).public_pem() for site in SITES}
        self.stop, self.said = threading.Event(), list[str]()
        self.threads: list[threading.Thread] = []

    def write(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)

    def pair(self, site: str) -> keys.Pair:
        made = keys.make_site(self.authority, site)
        self.write(f"{site}.crt", made.certificate_pem())
        self.write(f"{site}.key", made.key_pem())
        return made

    def credentials(self, site: str) -> Credentials:
        here = self.folder
        return Credentials("localhost", self.files.port, here / "ca.crt", here / f"{site}.crt", here / f"{site}.key")

    def serve(self, site: str, answer: Callable[[bytes], bytes]) -> None:
        def work() -> None:
            while not self.stop.is_set():
                try:
                    with FleetLine(self.credentials(site), patience=60) as line:
                        while not self.stop.is_set():
                            question = line.ask(4 << 20)
                            if question is None:
                                time.sleep(0.1)
                            else:
                                line.answer(question, answer(question.content))
                except LinkError as cause:
                    self.said.append(cause.message)
                    time.sleep(1)

        self.threads.append(threading.Thread(target=work, daemon=True))
        self.threads[-1].start()


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    made = Machines(tmp_path_factory.mktemp("server"))
    for site in SITES:
        made.serve(site, lambda content, name=site: name.encode() + content)  # type: ignore[misc]
    with Server(made.files) as server:
        made.server = server  # type: ignore[attr-defined]
        yield made
        made.stop.set()
        for thread in made.threads:
            thread.join(20)


def talk(machines: Machines, content: bytes) -> dict[str, bytes | None]:
    """A question to both sites, in a run of its own."""
    with Run(machines.files, machines.public) as run:
        assert run.grid is not None
        link = GridLink(run.grid, run.nodes)
        return ask(link, content)


def ask(link: GridLink, content: bytes) -> dict[str, bytes | None]:
    end, tickets, found = time.monotonic() + 240, dict[str, str](), dict[str, bytes | None]()
    while len(found) < len(SITES):
        assert time.monotonic() < end, f"only {list(found)} answered"
        for site in SITES:
            if site not in tickets.values() and (ticket := link.post(site, content, lifetime=600)):
                tickets[ticket] = site
        for ticket, answer in link.take([t for t, site in tickets.items() if site not in found]):
            found[tickets[ticket]] = answer
        time.sleep(0.1)
    return found


@pytest.mark.parametrize("size", [10, (3 << 20) + 17])
def test_bytes_go_to_each_site_and_come_back(size: int, machines: Machines) -> None:
    content = bytes(i % 251 for i in range(size))
    assert talk(machines, content) == {site: site.encode() + content for site in SITES}


def test_a_question_that_is_too_large_arrives_empty(machines: Machines) -> None:
    zeros = bytes(6 << 20)  # equal pieces travel once
    assert talk(machines, zeros) == {site: site.encode() for site in SITES}
    assert talk(machines, bytes(i * i % 251 for i in range(6 << 20))) == {site: site.encode() for site in SITES}


def test_a_key_that_is_not_registered_is_refused(machines: Machines) -> None:
    machines.pair("mallory")
    with pytest.raises(LinkError, match="412") as raised, FleetLine(machines.credentials("mallory")):
        pass
    assert "does not know this site's key" in raised.value.fix


def test_a_server_of_another_authority_is_not_spoken_to(machines: Machines) -> None:
    other = keys.make_authority("other")
    machines.write("other.crt", other.certificate_pem())
    wrong = replace(machines.credentials("alder"), authority=machines.folder / "other.crt")
    with pytest.raises(LinkError, match="cannot be reached"), FleetLine(wrong):
        pass


def test_a_site_cannot_speak_with_anothers_number(machines: Machines) -> None:
    """birch's key signs; the call names alder's node."""
    import httpx
    from flwr.proto.fleet_pb2 import PullMessagesRequest
    from flwr.proto.node_pb2 import Node

    with Run(machines.files, machines.public) as run:
        number = run.nodes["alder"]
    line = FleetLine(machines.credentials("birch"))
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        line._client.PullMessages(PullMessagesRequest(node=Node(node_id=number)))


def test_without_the_secret_nobody_takes_a_run(machines: Machines) -> None:
    machines.write("wrong", b"6" * 64)
    with pytest.raises(LinkError), Run(replace(machines.files, secret=machines.folder / "wrong"), machines.public):
        pass


def test_a_server_that_was_killed_is_started_again_and_the_sites_come_back(machines: Machines) -> None:
    server: Server = machines.server  # type: ignore[attr-defined]
    with Run(machines.files, machines.public) as run:
        assert run.grid is not None
        link = GridLink(run.grid, run.nodes)
        assert set(ask(link, b"before")) == set(SITES)
        assert server._process is not None
        server._process.kill()
        server._process.wait()
        assert not server.alive
        with pytest.raises(LinkError):
            ask(link, b"while it is away")
    server.start()
    assert talk(machines, b"after") == {site: site.encode() + b"after" for site in SITES}
