"""Real processes on the loopback: Flower's server, nginx, TLS, keys, a coordinator and two sites."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

if find_spec("flwr") is None:  # not importorskip: the adapter sets what Flower reads when it is imported
    pytest.skip("the extra 'flower' is not installed", allow_module_level=True)
pytest.importorskip("cryptography", reason="the extra 'flower' is not installed")

from tests.deploy.test_bags import ARMS, bags_study
from tests.deploy.test_provision import ask
from tests.deploy.test_report import changed
from tests.machines import NGINX, Machines, call

from morphfed.core.files import read_json, sha256_file
from morphfed.deploy import keys, provision
from morphfed.experiment.runner import Options, run_study
from morphfed.federation.loop import OWN
from morphfed.privacy.ledger import verify

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: apt install nginx; or NGINX=PATH)"),
]

UNIT = Path("units/fedavg/all/seed-0")


@pytest.fixture
def machines(tiny: Path, tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tiny, tmp_path / "m")
    made.folder.mkdir()
    yield made
    made.stop()


def train(machines: Machines) -> None:
    """A federation from its making to its end."""
    machines.init()
    for site in ("alder", "birch"):
        machines.prepare(site)
        machines.join(site)
    machines.coordinate()
    assert machines.wait("coordinator", 420) == 0


def test_two_sites_train_through_proxy_tls_and_keys_to_the_bytes_of_one_machine(
    machines: Machines, tiny: Path, tmp_path: Path
) -> None:
    train(machines)
    for site in ("alder", "birch"):
        assert machines.wait(site, 60) == 0
        assert verify(machines.folder / site / "ledger.jsonl").sound
    here = run_study(tiny, Options(tmp_path / "runs")).run / UNIT
    there = machines.folder / "fed/run" / UNIT
    assert sha256_file(there / "best.safetensors") == sha256_file(here / "best.safetensors")
    assert sha256_file(there / "last.safetensors") == sha256_file(here / "last.safetensors")
    assert "done" in machines.run("federation", "status", "fed").stdout


def test_secure_sums_over_real_links_give_the_bytes_of_one_machine(
    machines: Machines, tiny: Path, tmp_path: Path
) -> None:
    text = tiny.read_text().replace("[arms.fedavg]\n", "[arms.fedavg]\nfederation = { secure = true }\n")
    tiny.write_text(text)
    train(machines)
    here = run_study(tiny, Options(tmp_path / "runs")).run / UNIT
    there = machines.folder / "fed/run" / UNIT
    assert sha256_file(there / "last.safetensors") == sha256_file(here / "last.safetensors")
    entry = read_json(there / "unit.json")
    assert (entry["secure"]["keys"], entry["rejected"]) == ("signed", [])
    for site in ("alder", "birch"):
        ledger = (machines.folder / site / "ledger.jsonl").read_text()
        assert '"step": "masked"' in ledger or '"step":"masked"' in ledger
        assert verify(machines.folder / site / "ledger.jsonl").sound


def test_a_hyper_network_of_bags_over_real_links_gives_the_bytes_of_one_machine(tmp_path: Path) -> None:
    study = changed(bags_study(tmp_path), (ARMS, "[arms.hypernetwork]\n"))
    sites = ("alder", "birch", "cedar")
    machines = Machines(study, tmp_path / "m")
    machines.folder.mkdir()
    try:
        machines.init()
        for site in sites:
            assert call(["site", "approve", str(study), "--folder", str(machines.folder / site)]) == 0
            own = ("--label", "benign=normal") if site == "birch" else ()
            more = ("--option", f"bags={tmp_path / 'bags' / site}", *own)
            table, bundle = str(tmp_path / "bags" / site / "slides.csv"), f"fed/bundles/{site}.zip"
            machines.start(site, "site", "join", bundle, "--data", table, "--folder", site, *more)
        machines.coordinate()
        assert machines.wait("coordinator", 420) == 0
        for site in sites:
            assert machines.wait(site, 60) == 0
    finally:
        machines.stop()
    run = machines.folder / "fed/run"
    here = run_study(study, Options(tmp_path / "runs")).run
    unit = Path("units/hypernetwork/all/seed-0")
    assert sha256_file(run / unit / "best.safetensors") == sha256_file(here / unit / "best.safetensors")
    assert read_json(run / "results.json")["summary"] == read_json(here / "results.json")["summary"]
    # Each site ends with its own weights: those that the coordinator made for it.
    for site in ("alder", "birch"):
        kept = machines.folder / site / "models/slides/hypernetwork/all/seed-0/model.safetensors"
        own = load_file(here / unit / "sites" / site / "best.safetensors")
        assert own
        mine = load_file(kept)
        assert all(
            torch.equal(mine[name.removeprefix(OWN)], tensor) for name, tensor in own.items() if name.startswith(OWN)
        )


def test_killed_processes_are_started_again_and_the_model_is_the_same(
    machines: Machines, tiny: Path, tmp_path: Path
) -> None:
    """A site dies while it trains, then the coordinator, then Flower's server; each is only started again."""
    tiny.write_text(tiny.read_text().replace("rounds = 3", "rounds = 6"))
    machines.init()
    for site in ("alder", "birch"):
        machines.prepare(site)
        machines.join(site)
    machines.coordinate()
    machines.until("alder", "train 2")
    machines.kill("alder")
    machines.join("alder")
    machines.until("birch", "train 4")
    machines.kill("coordinator")
    machines.coordinate()
    machines.until("birch", "train 5")
    os.kill(machines.server(), signal.SIGKILL)
    assert machines.wait("coordinator", 420) == 0
    here = run_study(tiny, Options(tmp_path / "runs")).run / UNIT
    there = machines.folder / "fed/run" / UNIT
    assert [h["round"] for h in read_json(there / "unit.json")["history"]] == [1, 2, 3, 4, 5, 6]
    assert read_json(there / "unit.json")["rejected"] == []
    assert sha256_file(there / "last.safetensors") == sha256_file(here / "last.safetensors")
    assert verify(machines.folder / "alder/ledger.jsonl").sound


def test_strangers_are_refused_at_every_open_port(machines: Machines, tmp_path: Path) -> None:
    machines.init()
    machines.prepare("alder")
    machines.coordinate()
    settings, agreed = provision.read_federation(machines.folder / "fed")
    end = time.monotonic() + 120
    while socket.socket().connect_ex(("127.0.0.1", settings.inner_port)):
        assert time.monotonic() < end, machines.log("coordinator")
        time.sleep(0.3)
    made = provision.Made(machines.folder / "fed", agreed, [], None)  # type: ignore[arg-type]
    authority = keys.read_pair(
        (made.folder / "ca/ca.key").read_bytes(), (made.folder / "coordinator/ca.crt").read_bytes()
    )
    certified = keys.make_site(authority, "mallory")  # a certificate, but a key that was never registered
    for path in ("/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task"):
        assert ask(settings.port, made, path, pair=certified) == 404
    # Behind the proxy: calls without a valid signature.
    for path in ("pull-messages", "push-messages", "activate-node", "send-node-heartbeat", "push-object"):
        assert ask(settings.port, made, f"/v1/fleet/{path}", pair=certified) in (400, 401, 415, 422)
    # The server itself, for somebody on the coordinator's machine: no login, so no one takes the run's token.
    assert ask(settings.inner_port, made, "/v1/runtime/acquire-task") in (400, 401, 403, 415, 422)
    # A whole site of this program with the unregistered key.
    bundle = machines.folder / "fed/bundles/mallory.zip"
    shutil.copy(machines.folder / "fed/bundles/birch.zip", bundle)
    folder = machines.folder / "mallory"
    from morphfed.deploy.bundle import open_bundle

    open_bundle(bundle, folder)
    (folder / "bundle/site.key").write_bytes(certified.key_pem())
    (folder / "bundle/site.crt").write_bytes(certified.certificate_pem())
    program = (
        "import sys; from pathlib import Path\n"
        "from morphfed.federation.transports.flower.fleet import Credentials, FleetLine\n"
        "b = Path(sys.argv[1]) / 'bundle'\n"
        "with FleetLine(Credentials('localhost', int(sys.argv[2]), b/'ca.crt', b/'site.crt', b/'site.key')): pass\n"
    )
    tried = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(settings.port)], capture_output=True, text=True, check=False
    )
    assert tried.returncode != 0
    assert "does not know this site's key" in tried.stderr
