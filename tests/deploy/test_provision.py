"""What `federation init` writes: certificates that openssl accepts, bundles without others' secrets, a proxy that
lets only sites in."""

from __future__ import annotations

import signal
import socket
import ssl
import stat
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="the extra 'flower' is not installed")

from tests.deploy.test_consent import STUDY
from tests.machines import NGINX, start_nginx
from tests.ports import free_port

from morphfed.cli import call
from morphfed.core.errors import ConfigError, StorageError
from morphfed.deploy import keys, provision
from morphfed.deploy.templates import PATHS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> provision.Made:
    folder = tmp_path_factory.mktemp("init")
    (folder / "study.toml").write_text(STUDY)
    return provision.init(
        folder / "fed", folder / "study.toml", host="127.0.0.1", port=free_port(), inner_port=free_port()
    )


def _content(bundle: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(bundle) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_openssl_accepts_the_chain_and_the_purposes(made: provision.Made, tmp_path: Path) -> None:
    here = made.folder / "coordinator"
    for name, data in _content(made.bundles[0]).items():
        (tmp_path / name).write_bytes(data)

    def verify(purpose: str, path: Path) -> int:
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(here / "ca.crt"), str(path)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert verify("sslserver", here / "server.crt") == 0
    assert verify("sslclient", tmp_path / "site.crt") == 0
    assert verify("sslserver", tmp_path / "site.crt") != 0  # a site cannot pose as the server
    assert verify("sslclient", here / "server.crt") != 0


def test_a_bundle_holds_its_own_secrets_and_no_others(made: provision.Made) -> None:
    assert [b.stem for b in made.bundles] == ["alder", "birch"]
    alder, birch = map(_content, made.bundles)
    assert set(alder) == {"site.toml", "ca.crt", "site.crt", "site.key", "study.toml", "morphfed-site.service"}
    elsewhere = {p: p.read_bytes() for p in made.folder.rglob("*") if p.is_file() and p.suffix in (".key", ".secret")}
    assert {p.name for p in elsewhere} == {"ca.key", "server.key", "superexec.secret"}
    for data in alder.values():
        assert birch["site.key"] not in data
        assert not any(secret.strip() in data for secret in elsewhere.values())
    assert (made.folder / "coordinator/sites/alder.pub").read_bytes() == keys.read_pair(
        alder["site.key"], alder["site.crt"]
    ).public_pem()
    assert made.agreed.hash in alder["site.toml"].decode()


def test_secrets_are_readable_by_their_owner_only(made: provision.Made) -> None:
    private = [p for p in made.folder.rglob("*") if p.suffix in (".key", ".secret", ".zip")]
    assert len(private) == 5
    assert {stat.S_IMODE(p.stat().st_mode) for p in private} == {0o600}


def test_flower_is_told_to_be_quiet_in_every_service(made: provision.Made) -> None:
    service = (made.folder / "systemd/morphfed-coordinator.service").read_text()
    for text in (service, _content(made.bundles[0])["morphfed-site.service"].decode()):
        for line in (
            "FLWR_TELEMETRY_ENABLED=0",
            "FLWR_DISABLE_UPDATE_CHECK=1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1",
            "GLIBC_TUNABLES=glibc.malloc.hugetlb=1",
        ):
            assert f"Environment={line}" in text
    assert "$" not in service + (made.folder / "README.md").read_text()


def test_what_is_there_is_never_overwritten(made: provision.Made) -> None:
    with pytest.raises(StorageError, match="not empty"):
        provision.init(made.folder, made.folder / "study.toml", host="localhost")


def test_a_host_with_a_scheme_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY)
    with pytest.raises(ConfigError, match="no host name"):
        provision.init(tmp_path / "fed", tmp_path / "study.toml", host="https://example.org/")
    assert not (tmp_path / "fed").exists()


def test_the_command_reads_back_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.toml").write_text(STUDY)
    arguments = ["federation", "init", str(tmp_path / "fed"), "--study", str(tmp_path / "study.toml")]
    assert call([*arguments, "--host", "fl.example.org"]) == 0
    assert "bundle for birch" in capsys.readouterr().out
    settings, agreed = provision.read_federation(tmp_path / "fed")
    assert (settings.host, settings.port, agreed.sites) == ("fl.example.org", 443, ["alder", "birch"])


# ── the real nginx, before a server that answers everything ──────────────────────────────────────────────────


class _Answers(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"] or 0))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    do_GET = do_PUT = do_POST

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def proxy(made: provision.Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """nginx with the written configuration; behind it whatever gets through is answered with 200."""
    if NGINX is None:
        pytest.skip("nginx is not installed (Debian: apt install nginx; or NGINX=/path/to/nginx)")
    settings, _ = provision.read_federation(made.folder)
    inner = HTTPServer(("127.0.0.1", settings.inner_port), _Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.folder / "coordinator/server.crt", made.folder / "coordinator/server.key")
    inner.socket = context.wrap_socket(inner.socket, server_side=True)
    threading.Thread(target=inner.serve_forever, daemon=True).start()
    process = start_nginx(made.folder, tmp_path_factory.mktemp("nginx"))
    yield settings.port
    process.terminate()
    process.wait(10)
    inner.shutdown()


def ask(port: int, made: provision.Made, path: str, method: str = "POST", pair: keys.Pair | None = None) -> int:
    """HTTP status of a request, with a pair as the client certificate."""
    context = ssl.create_default_context(cafile=str(made.folder / "coordinator/ca.crt"))
    if pair is not None:
        folder = made.folder / "test-pair"
        folder.mkdir(exist_ok=True)
        (folder / "crt").write_bytes(pair.certificate_pem())
        (folder / "key").write_bytes(pair.key_pem())
        context.load_cert_chain(folder / "crt", folder / "key")
    connection = HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
    connection.request(method, path, body=b"x" if method != "GET" else None)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.fixture(scope="module")
def alder(made: provision.Made) -> keys.Pair:
    content = _content(made.bundles[0])
    return keys.read_pair(content["site.key"], content["site.crt"])


@pytest.mark.parametrize("path", PATHS)
def test_a_site_reaches_what_it_needs(path: str, made: provision.Made, proxy: int, alder: keys.Pair) -> None:
    assert ask(proxy, made, f"/v1/fleet/{path}", pair=alder) == 200
    assert ask(proxy, made, f"/v1/fleet/{path}", "GET", pair=alder) == 403


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/openapi.json",
        "/health",
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/control/list-nodes",
        "/v1/runtime/acquire-task",
        "/v1/runtime/pull-messages",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/get-fab",
        "/v1/fleet/get-run",
        "/v1/fleet/push-messages/../../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "//v1/control/start-run",
    ],
)
def test_a_site_reaches_nothing_else(path: str, made: provision.Made, proxy: int, alder: keys.Pair) -> None:
    assert ask(proxy, made, path, pair=alder) == 404


def test_strangers_get_no_answer_from_behind_the_proxy(made: provision.Made, proxy: int) -> None:
    path = "/v1/fleet/pull-messages"
    other = keys.make_authority("another federation")
    here = made.folder
    authority = keys.read_pair((here / "ca/ca.key").read_bytes(), (here / "coordinator/ca.crt").read_bytes())
    expired = keys.make_site(authority, "alder", days=0)
    assert ask(proxy, made, path) == 400  # no certificate
    assert ask(proxy, made, path, pair=keys.make_site(other, "alder")) == 400  # of another authority
    assert ask(proxy, made, path, pair=expired) == 400
    assert ask(proxy, made, path, pair=keys.make_server(authority, "localhost")) == 400  # not a site's
    with socket.create_connection(("127.0.0.1", proxy), timeout=10) as plain:  # a raw client without TLS
        plain.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert plain.recv(64).startswith(b"HTTP/1.1 400")


def test_a_revoked_site_is_shut_out_when_nginx_is_reloaded(tmp_path: Path) -> None:
    """By the real nginx: let in, still let in after `revoke`, shut out after the reload; the others stay, and a new
    bundle lets it in again."""
    if NGINX is None:
        pytest.skip("nginx is not installed (Debian: apt install nginx; or NGINX=/path/to/nginx)")
    (tmp_path / "study.toml").write_text(STUDY)
    made = provision.init(
        tmp_path / "fed", tmp_path / "study.toml", host="127.0.0.1", port=free_port(), inner_port=free_port()
    )
    settings, _ = provision.read_federation(made.folder)
    pairs = {}
    for bundle in made.bundles:
        content = _content(bundle)
        pairs[bundle.stem] = keys.read_pair(content["site.key"], content["site.crt"])
    (tmp_path / "nginx").mkdir()
    process = start_nginx(made.folder, tmp_path / "nginx")

    def status(site: str) -> int:
        return ask(settings.port, made, "/v1/fleet/pull-messages", pair=pairs[site])

    def reload(site: str, expected: int) -> None:
        process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 20
        while status(site) != expected:
            assert time.monotonic() < end, (tmp_path / "nginx/error.log").read_text()
            time.sleep(0.05)

    try:
        assert (status("alder"), status("birch")) == (502, 502)  # let in; nothing runs behind
        assert call(["federation", "revoke", str(made.folder), "alder"]) == 0
        assert status("alder") == 502
        reload("alder", 400)
        assert status("birch") == 502
        made.bundles[0].unlink()
        assert call(["federation", "renew", str(made.folder), "alder"]) == 0
        content = _content(made.bundles[0])
        old, pairs["alder"] = pairs["alder"], keys.read_pair(content["site.key"], content["site.crt"])
        reload("alder", 502)
        pairs["alder"] = old
        assert status("alder") == 400
    finally:
        process.terminate()
        process.wait(10)
