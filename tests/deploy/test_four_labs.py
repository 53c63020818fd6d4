"""Four laboratories over a network, from the commands of docs/how-to/federation.md, on the public images.

Each site is a process with a folder of its own; they reach the coordinator through nginx, TLS and keys, one over a
slow line. One is killed while it trains and started again. The report must be that of one machine.
"""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="the extra 'flower' is not installed")

from tests.deploy.test_network import pytestmark as needs
from tests.deploy.test_report import same, without_pictures
from tests.machines import Machines, Relay

from morphfed.core.files import read_json
from morphfed.deploy import provision
from morphfed.experiment.runner import Options, run_study
from morphfed.privacy.ledger import verify

pytestmark = needs

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WEIGHTS = "squeezenet1_1.imagenet.safetensors"
SOURCES = {
    "barcelona": ("PBC_dataset_normal_DIB", "pbc"),
    "tecom": ("segmentation_WBC/Dataset 1", "segmentation_wbc"),
    "bccd": ("bccd_crops", "bccd_crops"),
    "cellavision": ("segmentation_WBC/Dataset 2", "segmentation_wbc"),
}
RATE = 2_000_000
"""Bytes a second of the slow line, each way."""


@dataclass
class Labs(Machines):
    """Every site as a new user sets it up, in its own folder."""

    data: Path = Path()
    slow: dict[str, Relay] = field(default_factory=dict)

    def at(self, site: str, *arguments: str) -> str:
        here = self.folder / "machines" / site
        here.mkdir(parents=True, exist_ok=True)
        return self.run(*arguments, folder=here).stdout

    def setup(self, site: str) -> None:
        here = self.folder / "machines" / site
        here.mkdir(parents=True)
        bundle = here / f"{site}.zip"
        bundle.write_bytes((self.folder / f"fed/bundles/{site}.zip").read_bytes())
        study = subprocess.run(["unzip", "-p", str(bundle), "study.toml"], capture_output=True, check=True).stdout
        (here / "study.toml").write_bytes(study)
        (here / WEIGHTS).symlink_to(self.data / "weights" / WEIGHTS)
        path, source = SOURCES[site]
        self.at(site, "site", "approve", "study.toml", "--folder", site)
        images = str(self.data / "cells" / path)
        self.at(site, "data", "init", images, "--site", site, "--source", source, "--out", "manifest.csv")

    def join(self, site: str, *more: str) -> None:
        bundle = f"{site}.zip"
        if site in self.slow:  # its line is another port of this machine
            bundle = self.slower(site)
        here = self.folder / "machines" / site
        self.start(site, "site", "join", bundle, "--data", "manifest.csv", "--folder", site, *more, folder=here)

    def slower(self, site: str) -> str:
        here = self.folder / "machines" / site
        settings, _ = provision.read_federation(self.folder / "fed")
        with zipfile.ZipFile(here / f"{site}.zip") as archive:
            content = {name: archive.read(name) for name in archive.namelist()}
        text = content["site.toml"].decode()
        assert f"port = {settings.port}" in text
        content["site.toml"] = text.replace(f"port = {settings.port}", f"port = {self.slow[site].port}").encode()
        with zipfile.ZipFile(here / "slow.zip", "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return "slow.zip"


@pytest.fixture
def study(shared_data: Path, tmp_path: Path) -> Path:
    """The example, with a few short rounds of small pictures."""
    text = (EXAMPLES / "four-labs-network.toml").read_text()
    for before, after in (
        ("seeds = [0, 1, 2]", "seeds = [0]"),
        ("image_size = 96", "image_size = 48"),
        ("local_steps = 10 ", "local_steps = 2 "),
        ("train.local_steps = 20", "train.local_steps = 2"),
        ("rounds = 120", "rounds = 4"),
        ("federation.rounds = 60", "federation.rounds = 2"),
        ('release = "scores"', 'resamples = 500\nrelease = "scores"'),
        ('[arms.fedprox]\nweighting = "uniform"\nmu = 0.01\n', ""),
        ("jobs = 2", 'jobs = 1\ndevice = "cpu"'),
        ("../../shared/data/cells", str(shared_data / "cells")),
    ):
        assert before in text, before
        text = text.replace(before, after)
    path = tmp_path / "study" / "four-labs-network.toml"
    path.parent.mkdir()
    path.write_text(text)
    (path.parent / WEIGHTS).symlink_to(shared_data / "weights" / WEIGHTS)
    return path


@pytest.fixture
def labs(study: Path, shared_data: Path, tmp_path: Path) -> Iterator[Labs]:
    waits = {"gather": 1800.0, "absent": 300.0}  # four sites and a server may share two cores
    made = Labs(study, tmp_path / "m", data=shared_data, waits=waits)
    made.folder.mkdir()
    yield made
    made.stop()
    for line in made.slow.values():
        line.close()


def test_the_report_of_four_laboratories_is_that_of_one_machine(labs: Labs, study: Path, tmp_path: Path) -> None:
    labs.init()
    (labs.folder / "fed" / WEIGHTS).symlink_to(labs.data / "weights" / WEIGHTS)
    labs.slow["tecom"] = Relay(provision.read_federation(labs.folder / "fed")[0].port, rate=RATE)
    with ThreadPoolExecutor() as together:
        list(together.map(labs.setup, SOURCES))
    for site in SOURCES:
        labs.join(site)
    labs.coordinate()
    assert "scores with their" in labs.at("tecom", "site", "review", "study.toml")
    labs.until("bccd", "train 2 fedavg", seconds=2400)
    labs.kill("bccd")
    labs.join("bccd")
    alone = run_study(study, Options(tmp_path / "runs")).results
    assert labs.wait("coordinator", 2400) == 0
    for site in SOURCES:
        assert labs.wait(site, 120) == 0
        assert verify(labs.folder / "machines" / site / site / "ledger.jsonl").sound
    assert labs.slow["tecom"].up > 4 * 2_500_000  # its models went that way
    (labs.folder / "fed/run/report.html").unlink()
    assert "report.html" in labs.run("report", "fed").stdout

    there = read_json(labs.folder / "fed/run/results.json")
    assert there["network"]["missing"] == []
    assert not [unit["rejected"] for unit in there["arms"] if unit["rejected"]]
    here = without_pictures(read_json(alone))
    mine = [unit for unit in there["arms"] if unit["arm"] != "local"]
    wanted = [unit for unit in here["arms"] if unit["arm"] != "local"]
    assert list(mine[0]["sites"]) == ["barcelona", "tecom", "bccd", "cellavision"]
    only = {"options": [], "retrogress": [], "summary": [], "comparisons": []}
    same({**there, **only, "arms": mine}, {**here, **only, "arms": wanted})
    assert [row for row in there["summary"] if row not in here["summary"]] == []
    told = {(row["model"], row["scope"]) for row in there["summary"]}
    assert {("fedavg", "cellavision"), ("fedavg", "mean_training"), ("local (own site)", "mean_training")} <= told
    at_home = {unit["model"]: unit["sites"] for unit in here["arms"] if unit["arm"] == "local"}
    for unit in there["arms"]:
        if unit["arm"] == "local":
            site = unit["trained_on"][0]
            assert unit["sites"] == {site: at_home[unit["model"]][site]}
