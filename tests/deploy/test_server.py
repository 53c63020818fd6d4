"""Flower's real server on the loopback, with TLS and keys, and bytes through it; nothing is trained."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("flwr") is None:  # not importorskip: the adapter sets what Flower reads when it is imported
    pytest.skip("the extra 'flower' is not installed", allow_module_level=True)

from tests.machines import Relay
from tests.ports import free_port

from morphfed.core.errors import LinkError
from morphfed.deploy import keys
from morphfed.federation.transports.flower import calls
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
        self.write(f"{site}.pub", made.public_pem())
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


def _far(machines: Machines, relay: Relay, content: bytes, answer: bytes) -> Iterator[GridLink]:
    """A run with a third site at the far end of a relay; yields while its answer is not there."""
    public = machines.pair("cedar").public_pem()
    credentials = replace(machines.credentials("cedar"), port=relay.port)
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            try:
                with FleetLine(credentials, patience=120) as line:
                    while not done.is_set():
                        question = line.ask(8 << 20)
                        if question is None:
                            time.sleep(0.1)
                        else:
                            assert question.content == content
                            line.answer(question, answer)
            except LinkError:
                time.sleep(1)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    with Run(machines.files, {"cedar": public}) as run:
        assert run.grid is not None
        link, ticket, end = GridLink(run.grid, run.nodes), "", time.monotonic() + 300
        found: list[tuple[str, bytes | None]] = []
        while not found:
            assert time.monotonic() < end
            ticket = ticket or link.post("cedar", content, lifetime=600)
            found = list(link.take([ticket]))
            time.sleep(0.1)
            yield link
        assert found == [(ticket, answer)]
    done.set()
    relay.close()
    thread.join(20)


@pytest.mark.parametrize("away", [4, 50])
def test_an_upload_that_was_cut_off_goes_on_where_it_was(away: int, machines: Machines) -> None:
    """After 50 s the server calls the site gone; what has arrived is kept all the same."""
    relay, size = Relay(machines.files.port, rate=1.5e6), 12 << 20
    cut: float | None = None
    healed = False
    for link in _far(machines, relay, b"question", random.Random(0).randbytes(size)):
        if cut is None and relay.up > size // 2:
            relay.cut()
            cut = time.monotonic()
        elif cut is not None and not healed and time.monotonic() - cut > away:
            assert link.presence()["cedar"].connected == (away < 40)
            relay.heal()
            healed = True
    assert healed
    assert size < relay.up < size + (3 << 20)  # from the start again it would be half as much more


def test_bytes_arrive_over_a_link_that_is_late_and_breaks(machines: Machines) -> None:
    relay = Relay(machines.files.port, delay=0.02, loss=0.01, seed=3)
    content = random.Random(1).randbytes(3 << 20)
    for _ in _far(machines, relay, content, content[::-1]):
        pass
    assert relay.torn > 0


def test_a_clock_that_is_wrong_is_refused_in_words(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supercore.date import now

    for minutes, words in ((10, "10 minutes ahead of"), (-10, "10 minutes behind")):
        monkeypatch.setattr(
            "flwr.supernode.node_auth_http_interceptor.now", lambda m=minutes: now() + timedelta(minutes=m)
        )
        monkeypatch.setattr(calls, "_now", lambda m=minutes: time.time() + 60 * m)
        with pytest.raises(LinkError, match=words) as raised, FleetLine(machines.credentials("alder")):
            pass
        assert "set the clock" in raised.value.fix


def test_a_site_that_was_killed_is_let_in_again_at_once(machines: Machines) -> None:
    """The server believes it connected for forty seconds."""
    machines.pair("dogwood")
    with Run(machines.files, {"dogwood": (machines.folder / "dogwood.pub").read_bytes()}) as run:
        assert run.grid is not None
        link = GridLink(run.grid, run.nodes)
        dead = FleetLine(machines.credentials("dogwood"))
        dead.__enter__()
        dead._stop.set()  # no sign of life any more, and no goodbye
        first = link.presence()["dogwood"].since
        with pytest.raises(LinkError, match="412"), FleetLine(machines.credentials("dogwood")):
            pass  # somebody who does not know that it is dead
        with FleetLine(machines.credentials("dogwood"), take_over=True):
            time.sleep(2.5)
            again = link.presence()["dogwood"]
            assert again.connected
            assert again.since is not None
            assert first is not None
            assert again.since > first  # the coordinator sees that it was started anew


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
