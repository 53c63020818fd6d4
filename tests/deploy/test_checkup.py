"""`morphfed doctor --federation`: every fault that it names is put in front of it, on the loopback."""

from __future__ import annotations

import shutil
import socket
import ssl
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography", reason="the extra 'flower' is not installed")

from tests.deploy.test_consent import STUDY
from tests.ports import free_port

from morphfed import __version__
from morphfed.cli import call
from morphfed.core.check import Check
from morphfed.core.errors import ConfigError, LinkError
from morphfed.deploy import keys, provision
from morphfed.deploy.checkup import certificates, line, machine, registration
from morphfed.deploy.checkup import run as checkup
from morphfed.deploy.checkup.line import Target, UnreachedError
from morphfed.deploy.checkup.needs import Needs, needs_of
from morphfed.deploy.revocation import renew_server, renew_site, revoke


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> provision.Made:
    folder = tmp_path_factory.mktemp("checkup")
    (folder / "study.toml").write_text(STUDY)
    return provision.init(
        folder / "fed", folder / "study.toml", host="127.0.0.1", port=free_port(), inner_port=free_port()
    )


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of the machine that the tests run on."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class _Proxy(BaseHTTPRequestHandler):
    """What nginx says, as far as a site can tell."""

    ahead = 0.0  # seconds that the server's clock is ahead of this machine's
    posts = 401
    root = 404

    def do_GET(self) -> None:
        if not isinstance(self.connection, ssl.SSLSocket) or not self.connection.getpeercert():
            self._say(400, b"<h1>400 Bad Request</h1> No required SSL certificate was sent")
        else:
            self._say(self.root, b"not found")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._say(self.posts if self.path == "/v1/fleet/push-object" else 404, b"")

    def date_time_string(self, timestamp: Any = None) -> str:
        return format_datetime(datetime.now(UTC) + timedelta(seconds=self.ahead), usegmt=True)

    def _say(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gives up is what most of these tests are about."""


@contextmanager
def serving(made: provision.Made, pair: keys.Pair | None = None, **answers: Any) -> Iterator[int]:
    """A server with the federation's certificate, or another; yields its port."""
    here = made.folder / "coordinator"
    server = _Quiet(("127.0.0.1", 0), type("Answers", (_Proxy,), answers))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if pair is None:
        context.load_cert_chain(here / "server.crt", here / "server.key")
    else:
        other = made.folder / "other"
        other.mkdir(exist_ok=True)
        (other / "crt").write_bytes(pair.certificate_pem())
        (other / "key").write_bytes(pair.key_pem())
        context.load_cert_chain(other / "crt", other / "key")
    context.load_verify_locations(here / "ca.crt")
    context.verify_mode = ssl.CERT_OPTIONAL
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join(5)


def unpacked(made: provision.Made, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(made.bundles[0]) as archive:
        archive.extractall(folder)
    return folder


def authority_of(made: provision.Made) -> keys.Pair:
    return keys.read_pair((made.folder / "ca/ca.key").read_bytes(), (made.folder / "coordinator/ca.crt").read_bytes())


@pytest.fixture
def target(made: provision.Made, tmp_path: Path) -> Target:
    here = unpacked(made, tmp_path / "bundle")
    return Target("127.0.0.1", 1, here / "ca.crt", here / "site.crt", here / "site.key", timeout=3)


def seen(target: Target, **keys: Any) -> dict[str, Check]:
    """All steps, the failed one too."""
    found: list[Check] = []
    try:
        for check in line.checks(target, **keys):
            found.append(check)
    except UnreachedError as cause:
        found.append(cause.check)
    return {check.name: check for check in found}


def failed(target: Target, **keys: Any) -> Check:
    """The step at which it ended, which must be the last, with its fix."""
    last = list(seen(target, **keys).values())[-1]
    assert last.status == "FAIL"
    assert last.fix
    return last


# ── the line ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_line_that_is_as_it_should_be(made: provision.Made, target: Target) -> None:
    with serving(made) as port:
        target = replace(target, port=port)
        found = seen(target)
        assert list(found) == ["outgoing proxy", "name", "port", "tls", "certificate", "clock"]
        assert {check.status for check in found.values()} == {"PASS"}
        rate, moved = line.upload_speed(target)
    assert rate > 1e6
    assert moved == 4 << 20  # the loopback is quick


def test_a_wrong_name(target: Target) -> None:
    check = failed(replace(target, host="no-such-host.invalid"))
    assert (check.name, "not known here" in check.found) == ("name", True)


def test_a_wrong_port(target: Target) -> None:
    check = failed(replace(target, port=free_port()))
    assert (check.name, "nothing listens there" in check.found) == ("port", True)


def test_a_port_that_swallows_everything(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", never)
    check = failed(target)
    assert (check.name, "a firewall drops" in check.found) == ("port", True)


def test_a_port_that_does_not_speak_tls(target: Target) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer() -> None:
            with plain.accept()[0]:  # the look at the port
                pass
            with plain.accept()[0] as line:
                line.recv(100)
                line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        check = failed(replace(target, port=plain.getsockname()[1]))
        thread.join(5)
    assert (check.name, "does not speak TLS" in check.found) == ("tls", True)


def test_a_server_of_another_authority(made: provision.Made, target: Target) -> None:
    other = keys.make_server(keys.make_authority("Inspection Ltd"), "127.0.0.1")
    with serving(made, other) as port:
        check = failed(replace(target, port=port))
    assert check.name == "tls"
    assert "does not count" in check.found
    assert "Inspection Ltd" in check.found  # who signed it: a device that reads TLS gives itself away
    assert "device on the way" in check.fix


def test_a_certificate_for_another_name(made: provision.Made, target: Target) -> None:
    pair = keys.make_server(authority_of(made), "fl.example.org")
    other = keys._signed("fl.example.org", authority_of(made), days=9, server=True, hosts=("fl.example.org",))
    assert pair.certificate.subject == other.certificate.subject
    with serving(made, other) as port:
        check = failed(replace(target, port=port))
    assert (check.name, "for another name" in check.fix) == ("tls", True)


def test_a_servers_certificate_that_has_ended_or_ends_soon(made: provision.Made, target: Target) -> None:
    with serving(made, keys.make_server(authority_of(made), "127.0.0.1", days=0)) as port:
        check = failed(replace(target, port=port))
    assert "expired" in check.found
    assert "renew FOLDER --server" in check.fix
    with serving(made, keys.make_server(authority_of(made), "127.0.0.1", days=9)) as port:
        check = seen(replace(target, port=port))["tls"]
    assert (check.status, "9 days" in check.found) == ("WARN", True)


@pytest.mark.parametrize(
    ("ahead", "status"), [(0, "PASS"), (20, "PASS"), (-4, "WARN"), (-8, "FAIL"), (120, "WARN"), (400, "FAIL")]
)
def test_a_clock_that_is_off(ahead: float, status: str, made: provision.Made, target: Target) -> None:
    """The server's clock is so much ahead of this machine's. Flower takes no call from its future."""
    with serving(made, ahead=ahead) as port:
        check = seen(replace(target, port=port))["clock"]
    assert check.status == status
    if status != "PASS":
        assert ("ahead of" if ahead < 0 else "behind") in check.found
        assert "timedatectl" in check.fix


def test_a_proxy_that_takes_no_certificate_of_this_site(made: provision.Made, target: Target, tmp_path: Path) -> None:
    with serving(made, root=400) as port:  # as nginx after a revocation, but for the words
        odd = seen(replace(target, port=port))["certificate"]
    assert odd.status == "WARN"
    said = b"<h1>400 Bad Request</h1> The SSL certificate error"

    def revoked(self: Any) -> None:
        self._say(400, said)

    with serving(made, do_GET=revoked) as port:
        check = failed(replace(target, port=port))
    assert (check.name, "does not accept" in check.found) == ("certificate", True)
    (tmp_path / "key").write_bytes(keys.make_site(authority_of(made), "alder").key_pem())
    check = failed(replace(target, port=port, key=tmp_path / "key"))
    assert "port" in check.name or "cannot be used" in check.found


def test_the_coordinator_sees_whether_strangers_are_turned_away(made: provision.Made, target: Target) -> None:
    plain = replace(target, certificate=None, key=None)
    with serving(made) as port:
        found = seen(replace(plain, port=port))
    assert found["strangers"].status == "PASS"
    assert "clock" not in found

    def open_door(self: Any) -> None:
        self._say(404, b"")

    with serving(made, do_GET=open_door) as port:
        check = seen(replace(plain, port=port))["strangers"]
    assert (check.status, "ssl_verify_client" in check.fix) == ("FAIL", True)


def test_a_proxy_that_lets_no_speed_be_measured(made: provision.Made, target: Target) -> None:
    with serving(made, posts=413) as port, pytest.raises(UnreachedError, match="answers 413"):
        line.upload_speed(replace(target, port=port))


def test_an_outgoing_proxy_is_used_and_named(
    made: provision.Made, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward proxy that lets CONNECT through to one place, and asks for a password."""
    asked: list[bytes] = []
    with serving(made) as port, socket.create_server(("127.0.0.1", 0)) as middle:

        def forward() -> None:
            with middle.accept()[0]:  # the look at the port
                pass
            near = middle.accept()[0]
            head = b""
            while b"\r\n\r\n" not in head:
                head += near.recv(1000)
            asked.append(head)
            far = socket.create_connection(("127.0.0.1", port))
            near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=pipe, args=(far, near), daemon=True)
            back.start()
            pipe(near, far)

        def pipe(source: socket.socket, sink: socket.socket) -> None:
            try:
                while part := source.recv(65536):
                    sink.sendall(part)
            except OSError:
                pass

        threading.Thread(target=forward, daemon=True).start()
        place = middle.getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://nurse:secret@localhost:{place}")
        monkeypatch.setenv("NO_PROXY", "elsewhere.example")
        found = seen(replace(target, port=port))
    assert found["outgoing proxy"].status == "WARN"
    assert f"localhost:{place}" in found["outgoing proxy"].found
    assert not any("secret" in check.found + check.fix for check in found.values())
    assert found["certificate"].status == "PASS"
    assert asked[0].startswith(f"CONNECT 127.0.0.1:{port}".encode())
    assert b"Basic bnVyc2U6c2VjcmV0" in asked[0]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert line.forward_proxy(target) is None


# ── certificates and secrets on disk ────────────────────────────────────────────────────────────────────────


def test_a_sites_own_certificate(made: provision.Made, tmp_path: Path) -> None:
    here = unpacked(made, tmp_path / "bundle")
    assert certificates.at_site(here).status == "PASS"
    later = datetime.now(UTC) + timedelta(days=380)
    assert certificates.at_site(here, now=later).status == "WARN"
    ended = certificates.at_site(here, now=later + timedelta(days=30))
    assert (ended.status, "ended: this site's" in ended.found) == ("FAIL", True)
    early = certificates.at_site(here, now=datetime(2020, 1, 1, tzinfo=UTC))
    assert (early.status, "clock says 2020-01-01" in early.fix) == ("FAIL", True)
    other = keys.make_site(keys.make_authority("other"), "alder")
    (here / "site.crt").write_bytes(other.certificate_pem())
    check = certificates.at_site(here)
    assert (check.status, "not signed by" in check.found) == ("FAIL", True)
    (here / "site.crt").write_bytes(keys.make_site(authority_of(made), "alder").certificate_pem())
    check = certificates.at_site(here)
    assert (check.status, "the key is not" in check.found) == ("FAIL", True)
    (here / "site.key").write_bytes(b"nonsense")
    check = certificates.at_site(here)
    assert (check.status, "cannot be used" in check.found) == ("FAIL", True)


def test_the_coordinators_folder(made: provision.Made, tmp_path: Path) -> None:
    fed = tmp_path / "fed"
    shutil.copytree(made.folder, fed)

    def seen() -> dict[str, Check]:
        return {check.name: check for check in certificates.at_coordinator(fed)}

    found = seen()
    assert {name: check.status for name, check in found.items()} == {
        "server's certificate": "PASS",
        "revoked": "PASS",
        "sites' certificates": "PASS",
        "secrets": "WARN",
    }
    assert "ca/ca.key" in found["secrets"].found
    assert "alder, birch" in found["secrets"].found
    revoke(fed, "birch")
    assert seen()["revoked"].found.startswith("birch since")
    (fed / "ca/ca.key").rename(tmp_path / "ca.key")
    shutil.rmtree(fed / "bundles")
    assert seen()["secrets"].status == "PASS"
    (fed / "coordinator/server.key").chmod(0o644)
    check = seen()["secrets"]
    assert (check.status, check.fix.startswith("chmod 600")) == ("FAIL", True)
    (fed / "coordinator/revoked.crl").write_bytes(keys.revocations(keys.make_authority("x"), {}))
    assert seen()["revoked"].status == "FAIL"
    old = datetime.now(UTC) + timedelta(days=500)
    late = {check.name: check for check in certificates.at_coordinator(fed, now=old)}
    assert (late["server's certificate"].status, late["sites' certificates"].status) == ("FAIL", "FAIL")
    (fed / "coordinator/server.crt").write_bytes(keys.make_server(keys.make_authority("x"), "h").certificate_pem())
    assert "not signed by" in seen()["server's certificate"].found
    renew_server(fed, key=tmp_path / "ca.key")
    assert seen()["server's certificate"].status == "PASS"


# ── the machine ─────────────────────────────────────────────────────────────────────────────────────────────


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    have = {"torch": "2.9.0", "torchvision": "0.24.0", "timm": "1.0.20", "flwr": "1.42.0", "cryptography": "50.0.0"}
    monkeypatch.setattr(machine, "_installed", have.get)
    assert machine.versions().status == "PASS"
    assert machine.versions(__version__).status == "PASS"
    other = machine.versions("9.9")
    assert (other.status, "the coordinator runs morphfed 9.9" in other.found) == ("FAIL", True)
    have["flwr"] = "1.43.0"
    pinned = machine.versions()
    assert (pinned.status, "needed: flwr<1.43,>=1.41" in pinned.found) == ("FAIL", True)
    del have["flwr"]
    missing = machine.versions()
    assert (missing.status, "flwr missing" in missing.found) == ("FAIL", True)


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage(10**12, 0, 5 * 10**9))
    states = [machine.disk(tmp_path / "not/there", int(gb * 1e9), "models").status for gb in (1, 3, 6)]
    assert states == ["PASS", "WARN", "FAIL"]


def test_the_inner_port_is_on_the_loopback_only(tmp_path: Path) -> None:
    head = "  sl  local_address rem_address   st\n"

    def table(*addresses: str) -> Path:
        rows = [f"   {n}: {address} 00000000:0000 0A\n" for n, address in enumerate(addresses)]
        (tmp_path / "tcp").write_text(head + "".join(r for r in rows if len(r.split()[1]) < 20))
        (tmp_path / "tcp6").write_text(head + "".join(r for r in rows if len(r.split()[1]) > 20))
        return tmp_path

    assert machine.inner_port(8000, table()).found.endswith("does not run")
    assert machine.inner_port(8000, table("0100007F:1F40")).status == "PASS"
    assert machine.inner_port(8000, table(f"{'0' * 24}01000000:1F40")).status == "PASS"  # ::1
    assert machine.inner_port(8000, table("00000000:1F41")).status == "PASS"  # another port
    assert machine.inner_port(8000, table("0100007F:1F40", "00000000:1F40")).status == "FAIL"
    assert machine.inner_port(8000, table(f"{'0' * 32}:1F40")).status == "FAIL"  # all, by IPv6
    with socket.create_server(("127.0.0.1", 0)) as here:
        assert "loopback only" in machine.inner_port(here.getsockname()[1]).found
    with socket.create_server(("0.0.0.0", 0)) as open_:
        assert machine.inner_port(open_.getsockname()[1]).status == "FAIL"


def test_what_the_server_says_of_a_key() -> None:
    cause = LinkError("x answers 401: no.", fix="set the clock.")
    assert registration.refused(502, cause, alone=True).status == "WARN"
    assert registration.refused(412, cause, alone=True).status == "FAIL"
    assert registration.refused(412, cause, alone=False).status == "WARN"
    assert registration.refused(401, cause, alone=True).found == cause.message


def test_needs_are_those_of_the_review(made: provision.Made) -> None:
    from morphfed.deploy.review import network_of

    needs = needs_of(made.agreed)
    unit = made.agreed.units[0]
    import torch

    network = network_of(unit, made.agreed, torch.device("cpu"))
    state = sum(t.numel() * t.element_size() for t in network.backbone.module.state_dict().values())
    assert needs.upload == network.coding.nbytes
    assert needs.site == 2 * (state + 4 * 3 * state)  # two units: the model, and of four rounds weights and two moments
    assert needs.coordinator == 2 * 2 * state + 4 * needs.download + 2 * 2 * (needs.upload + needs.download)
    assert needs.round_seconds(8e6) == pytest.approx((needs.upload + needs.download) / 1e6)


def test_a_speed_and_what_it_means() -> None:
    needs = Needs(20_000_000, 20_000_000, 0, 0)
    quick = checkup.speed(50e6, 1 << 20, needs)
    assert (quick.status, "50 Mbit/s up" in quick.found, "about 6 s" in quick.found) == ("PASS", True, True)
    slow = checkup.speed(0.15e6, 1 << 17, needs)  # 2133 s
    assert (slow.status, "about 36 min" in slow.found, "federation.upload" in slow.fix) == ("WARN", True, True)
    assert checkup.speed(0.05e6, 1 << 17, None).status == "FAIL"


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_at_a_site_and_at_the_coordinator(
    made: provision.Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[bool] = []

    def key(target: Target, *, alone: bool) -> Check:
        tried.append(alone)
        return Check("key", "PASS", "registered")

    monkeypatch.setattr(checkup, "registration", key)
    monkeypatch.setattr(machine, "versions", lambda wanted="": Check("versions", "PASS", f"wanted {wanted}"))
    with serving(made) as port:
        site = tmp_path / "site"
        secrets = unpacked(made, site / "bundle") if site.mkdir() is None else site
        toml = secrets / "site.toml"
        settings, _ = provision.read_federation(made.folder)
        toml.write_text(toml.read_text().replace(f"port = {settings.port}", f"port = {port}"))
        assert call(["doctor", "--federation", str(site)]) == 0
        out = capsys.readouterr().out
        for name in ("own certificate", "name", "port", "tls", "certificate", "clock", "key", "disk", "speed"):
            assert f" {name} " in out
        assert f"wanted {__version__}" in out
        assert "fix approval: morphfed site review" in out
        bundle = tmp_path / "alder.zip"
        with zipfile.ZipFile(bundle, "w") as archive:
            for path in secrets.iterdir():
                archive.write(path, path.name)
        assert call(["doctor", "--federation", str(bundle), "--json"]) == 0
        assert tried == [True, False]
        capsys.readouterr()
    assert call(["doctor", "--federation", str(made.folder)]) == 1  # its nginx does not run
    out = capsys.readouterr().out
    assert "nothing listens there" in out
    assert "inner port" in out
    assert "next: mend what failed" in out
    with pytest.raises(ConfigError, match="no join bundle, no site's folder"):
        list(checkup.run(tmp_path))


def test_a_site_whose_process_runs_is_not_disturbed(
    made: provision.Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    def never(*args: Any, **kwargs: Any) -> Check:
        raise AssertionError("activated while the site's own process is connected")

    monkeypatch.setattr(checkup, "registration", never)
    with FileLock(tmp_path / ".lock"):
        check = checkup._key(Target("x", 1, tmp_path), tmp_path)
    assert (check.status, "site join` runs here" in check.found) == ("PASS", True)


# ── revoking and renewing ───────────────────────────────────────────────────────────────────────────────────


def test_a_typo_in_a_sites_name_is_answered_with_the_nearest(
    made: provision.Made, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("revoke", "renew"):
        assert call(["federation", command, str(made.folder), "adler"]) == 2
        err = capsys.readouterr().err
        assert "has no site 'adler'. Did you mean 'alder'?" in err
        assert "name one of alder, birch" in err


def test_without_the_authoritys_key_nothing_is_revoked(
    made: provision.Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fed = tmp_path / "fed"
    shutil.copytree(made.folder, fed)
    key, before = tmp_path / "medium.key", (fed / "coordinator/revoked.crl").read_bytes()
    (fed / "ca/ca.key").rename(key)
    assert call(["federation", "revoke", str(fed), "alder"]) == 7
    err = capsys.readouterr().err
    assert "The authority's key is not here" in err
    assert "name the file with --key" in err
    other = tmp_path / "other.key"
    other.write_bytes(keys.make_authority("other").key_pem())
    assert call(["federation", "revoke", str(fed), "alder", "--key", str(other)]) == 2
    assert "key of another authority" in capsys.readouterr().err
    assert (fed / "coordinator/revoked.crl").read_bytes() == before
    assert call(["federation", "revoke", str(fed), "alder", "--key", str(key)]) == 0
    out = capsys.readouterr().out
    assert "revoked: 'alder'" in out
    assert "systemctl reload nginx" in out
    assert call(["federation", "revoke", str(fed), "alder", "--key", str(key)]) == 0
    assert "on the list already" in capsys.readouterr().out


def test_lists_add_up_and_a_renewed_site_counts_again(made: provision.Made, tmp_path: Path) -> None:
    from morphfed.deploy.revocation import Revoked, revoked_sites

    fed = tmp_path / "fed"
    shutil.copytree(made.folder, fed)
    watch = Revoked(fed)
    assert set(watch()) == set()
    first = revoke(fed, "alder")
    second = revoke(fed, "birch")
    authority = keys.read_certificate((fed / "coordinator/ca.crt").read_bytes())
    found = keys.read_revocations((fed / "coordinator/revoked.crl").read_bytes(), authority)
    assert set(found.revoked) == {first.serial, second.serial}
    assert found.number == 3
    assert set(watch()) == set(revoked_sites(fed)) == {"alder", "birch"}
    public = (fed / "coordinator/sites/alder.pub").read_bytes()
    (fed / "bundles/alder.zip").unlink()
    bundle = renew_site(fed, "alder")
    assert set(revoked_sites(fed)) == {"birch"}
    with zipfile.ZipFile(bundle) as archive:
        pair = keys.read_pair(archive.read("site.key"), archive.read("site.crt"))
        assert archive.read("study.toml") == (fed / "study.toml").read_bytes()
    assert pair.public_pem() == (fed / "coordinator/sites/alder.pub").read_bytes() != public
    assert keys.is_issued_by(pair.certificate, authority)
    assert pair.certificate.serial_number not in found.revoked


def test_an_older_federation_has_the_certificate_in_its_bundle_only(made: provision.Made, tmp_path: Path) -> None:
    from morphfed.core.errors import StorageError

    fed = tmp_path / "fed"
    shutil.copytree(made.folder, fed)
    serial = keys.read_certificate((fed / "coordinator/sites/alder.crt").read_bytes()).serial_number
    shutil.move(fed / "coordinator/sites/alder.crt", tmp_path)
    shutil.move(fed / "coordinator/sites/birch.crt", tmp_path)
    assert revoke(fed, "alder").serial == serial
    (fed / "bundles/birch.zip").unlink()
    with pytest.raises(StorageError, match="certificate of 'birch' is not here.*ask the site"):
        revoke(fed, "birch")
