"""A study over a link, site by site from its bundle and its own images: the files of a study on one machine."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="the extra 'flower' is not installed")

from tests.links import FakeClock, MemoryLink

from morphfed import __version__
from morphfed.core.errors import ConfigError, FederationError, StorageError
from morphfed.core.files import read_json, sha256_file
from morphfed.core.progress import Event
from morphfed.data.drafting import draft
from morphfed.deploy import provision
from morphfed.deploy.bundle import open_bundle
from morphfed.deploy.consent import approve, withdraw
from morphfed.deploy.coordinator import train_over
from morphfed.deploy.deployment import Deployment
from morphfed.deploy.provision import FederationSettings, read_federation
from morphfed.deploy.resident import Resident
from morphfed.deploy.review import review
from morphfed.experiment.runner import Options, run_study
from morphfed.experiment.study import SiteConfig
from morphfed.federation.transports.parcel import Parcel, pack, unpack
from morphfed.models import weights
from morphfed.privacy.ledger import ChainedLedger, records, verify

UNIT = Path("units/fedavg/all/seed-0")


class Consortium:
    """A federation folder, and two sites, each with a manifest of its own images."""

    def __init__(self, study: Path, folder: Path) -> None:
        self.study, self.folder = study, folder
        self.made = provision.init(folder / "fed", study, host="localhost")
        self.settings, self.agreed = read_federation(self.made.folder)
        self.said: list[Event] = []
        self.residents = {name: self.join(name) for name in self.agreed.sites}

    def join(self, name: str, *, consent: bool = True) -> Resident:
        here = self.folder / "machines" / name
        open_bundle(self.made.folder / "bundles" / f"{name}.zip", here)
        own = here / "bundle" / "study.toml"
        if consent:
            approve(here, own, review(self.agreed))
        manifest = here / "manifest.csv"
        if not manifest.exists():
            draft(self.study.parent / "films" / name, site=name).manifest.write(manifest)
        ledger = ChainedLedger(here / "ledger.jsonl")
        return Resident(name, here, SiteConfig(path=str(manifest)), ledger, report=self.said.append)

    def link(self) -> MemoryLink:
        return MemoryLink({name: resident.answer for name, resident in self.residents.items()}, FakeClock())

    def train(self, link: MemoryLink | None = None) -> Path:
        settings = self.settings.model_copy(update={"gather": 1.0})
        run = self.made.folder / "run"
        on = Deployment(link or self.link(), self.agreed, settings, run, report=self.said.append)
        train_over(on, self.agreed.units[0])
        return run / UNIT


@pytest.mark.parametrize(
    "more",
    ["", '\n[arms.fedavg.federation]\nupload = "int8"\n[arms.fedavg.model]\nnorm = "local"\n'],
    ids=["plain", "coded, local norms"],
)
def test_the_same_study_gives_the_same_model_files(more: str, tiny: Path, tmp_path: Path) -> None:
    settled = '[evaluation]\ncalibrate = "temperature"\n'
    tiny.write_text(
        tiny.read_text().replace("[evaluation]\n", settled).replace("[arms.fedavg]\n", "[arms.fedavg]\n" + more)
    )
    here = run_study(tiny, Options(tmp_path / "runs")).run / UNIT
    consortium = Consortium(tiny, tmp_path)
    there = consortium.train()
    for name in ("best", "last"):
        assert sha256_file(there / f"{name}.safetensors") == sha256_file(here / f"{name}.safetensors")
    mine, theirs = read_json(there / "unit.json"), read_json(here / "unit.json")
    assert mine["calibration"] == theirs["calibration"]
    assert mine["best_round"] == theirs["best_round"]
    for folder in (here, there):  # what only a run that goes on needs is gone
        assert not (folder / "checkpoint").exists()
        assert not list(folder.glob("sites/*/private*"))
    for left, right in zip(mine["history"], theirs["history"], strict=True):
        assert left["sites"] == right["sites"]
    # Each site has the model as it uses it, and a sound ledger whose end the coordinator knows.
    for name, resident in consortium.residents.items():
        assert resident.over
        ledger = consortium.folder / "machines" / name / "ledger.jsonl"
        assert verify(ledger).sound
        assert mine["ledgers"][name] == verify(ledger).head
        kept = weights.load(consortium.folder / "machines" / name / "models/tiny/fedavg/all/seed-0/model.safetensors")
        chosen = weights.load(there / "best.safetensors")
        assert kept.keys() == chosen.keys()
        differ = {key for key in kept if not kept[key].equal(chosen[key]) and not key.endswith("batches_tracked")}
        assert bool(differ) == bool(more)  # its own norms


def test_sums_over_the_network_give_the_files_of_one_machine(tiny: Path, tmp_path: Path) -> None:
    settled = 'calibrate = "temperature"\n'
    tiny.write_text(
        tiny.read_text()
        .replace("[evaluation]\n", f"[evaluation]\n{settled}")
        .replace("[arms.fedavg]\n", "[arms.fedavg]\nfederation = { secure = true }\n")
    )
    here = run_study(tiny, Options(tmp_path / "runs")).run / UNIT
    consortium = Consortium(tiny, tmp_path)
    shown = review(consortium.agreed).text
    assert "the coordinator sees the sum over the sites only" in shown
    assert "any 2 of the 2 sites" in shown
    assert "this site's upload by itself" not in shown
    there = consortium.train()
    assert sha256_file(there / "last.safetensors") == sha256_file(here / "last.safetensors")
    mine, theirs = read_json(there / "unit.json"), read_json(here / "unit.json")
    assert mine["calibration"] == theirs["calibration"]
    assert mine["secure"] == {"threshold": 2, "sites": 2, "bits": 32, "keys": "signed"}
    assert theirs["secure"]["keys"] == "unsigned"
    for name in consortium.residents:
        ledger = consortium.folder / "machines" / name / "ledger.jsonl"
        assert verify(ledger).sound
        lines = list(records(ledger))
        assert not any("weight" in line or "values" in line for line in lines)
        keys = next(line for line in lines if line.get("step") == "keys")
        assert {item["name"] for item in keys["items"]} >= {"signature", "certificate", "masking"}
        assert {line["step"] for line in lines if "step" in line} == {"keys", "shares", "masked", "opened"}


def test_the_ledger_accounts_for_every_byte_that_the_coordinator_counts(tiny: Path, tmp_path: Path) -> None:
    consortium = Consortium(tiny, tmp_path)
    unit = read_json(consortium.train() / "unit.json")
    sent = [r for name in consortium.residents for r in records(tmp_path / "machines" / name / "ledger.jsonl")]
    uploads = [r for r in sent if "weight" in r]
    assert sum(r["bytes"] for r in uploads) == unit["bytes_up"]
    assert {(r["site"], r["round"]) for r in uploads} == {(s, n) for s in ("alder", "birch") for n in (1, 2, 3)}
    assert {r["study"] for r in sent} == {consortium.agreed.hash}


def test_without_approval_nothing_is_trained_and_the_site_is_named(tiny: Path, tmp_path: Path) -> None:
    consortium = Consortium(tiny, tmp_path)
    for name in consortium.residents:
        withdraw(tmp_path / "machines" / name, consortium.agreed.hash)
    with pytest.raises(FederationError, match=r"0 of 2 sites are ready.*'alder'.*not approved.*'birch'.*not approved"):
        consortium.train()
    words = list(records(tmp_path / "machines/alder/ledger.jsonl"))
    assert {r["kind"] for r in words} == {"refusal"}  # what was said is written down, and nothing else left


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"site": "birch"}, "for the site 'birch', this is 'alder'"),
        ({"version": "9.9"}, "runs morphfed 9.9"),
        ({"study": "0" * 64}, "not approved"),
        ({"study": "../../x"}, "not approved"),
        ({"unit": "fedavg/all/seed-9"}, "no unit"),
        ({"unit": "../../../tmp"}, "no unit"),
        ({"network": "other"}, "initial network"),
    ],
)
def test_a_question_that_is_not_for_this_site_or_study_is_refused(
    change: dict[str, str], why: str, tiny: Path, tmp_path: Path
) -> None:
    consortium = Consortium(tiny, tmp_path)
    head = {
        "study": consortium.agreed.hash,
        "unit": "fedavg/all/seed-0",
        "site": "alder",
        "version": __version__,
        "network": "",
    }
    answer = unpack(consortium.residents["alder"].answer(pack(Parcel("hello", head | change))), limit=0)
    assert answer.kind == "refusal"
    assert why in answer.head["why"]
    assert not list((tmp_path / "machines/alder").glob("state/**/*.safetensors"))


@pytest.mark.parametrize("kind", ["shell", "pickle", "state", "images", ""])
def test_there_is_no_question_for_anything_else(kind: str, tiny: Path, tmp_path: Path) -> None:
    consortium = Consortium(tiny, tmp_path)
    head = {"study": consortium.agreed.hash, "unit": "fedavg/all/seed-0", "site": "alder", "version": __version__}
    answer = unpack(consortium.residents["alder"].answer(pack(Parcel(kind, head))), limit=0)
    assert answer.kind == "refusal"
    assert "no question" in answer.head["why"]


@pytest.mark.parametrize("content", [b"", b"junk", bytes(4 << 20)])
def test_bytes_that_are_no_question_are_refused(content: bytes, tiny: Path, tmp_path: Path) -> None:
    consortium = Consortium(tiny, tmp_path)
    assert unpack(consortium.residents["alder"].answer(content), limit=0).kind == "refusal"


def test_a_sites_own_errors_do_not_tell_its_files(tiny: Path, tmp_path: Path) -> None:
    consortium = Consortium(tiny, tmp_path)
    (tmp_path / "machines/alder/manifest.csv").unlink()
    head = {"study": consortium.agreed.hash, "unit": "fedavg/all/seed-0", "site": "alder", "version": __version__}
    answer = unpack(consortium.residents["alder"].answer(pack(Parcel("hello", head))), limit=0)
    assert answer.head["why"] == "error MF020 at the site; its own log says more"
    assert any("manifest.csv" in event.text for event in consortium.said)


def test_a_folder_belongs_to_one_site(tiny: Path, tmp_path: Path) -> None:
    consortium = Consortium(tiny, tmp_path)
    bundles = consortium.made.folder / "bundles"
    open_bundle(bundles / "alder.zip", tmp_path / "machines/alder")  # again: new certificates
    with pytest.raises(ConfigError, match="belongs to the site 'alder'"):
        open_bundle(bundles / "birch.zip", tmp_path / "machines/alder")
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(ConfigError, match="no join bundle"):
        open_bundle(tmp_path / "x.zip", tmp_path / "elsewhere")
    assert (tmp_path / "machines/alder/bundle/site.key").stat().st_mode & 0o777 == 0o600


def test_a_site_with_a_broken_ledger_does_not_start(tiny: Path, tmp_path: Path) -> None:
    Consortium(tiny, tmp_path).train()
    path = tmp_path / "machines/alder/ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round":2', b'"round":1', 1))
    with pytest.raises(StorageError, match="nothing leaves while the ledger is broken"):
        ChainedLedger(path)


def test_settings_are_read_back_as_they_were_written(tiny: Path, tmp_path: Path) -> None:
    consortium = Consortium(tiny, tmp_path)
    assert consortium.settings == FederationSettings(name="tiny", host="localhost", port=443)


def test_a_question_that_comes_again_gets_the_same_answer_without_training_twice(tiny: Path, tmp_path: Path) -> None:
    """Its answer was lost on its way. The noise, drawn in secret, would differ if it were drawn again."""
    noise = '\n[arms.fedavg.federation.noise]\nkind = "as_published"\nalpha = 0.01\ndraw = "secret"\n'
    tiny.write_text(tiny.read_text().replace("[arms.fedavg]\n", "[arms.fedavg]\n" + noise))
    consortium = Consortium(tiny, tmp_path)
    link, lost = consortium.link(), []

    def change(site: str, question: bytes, answer: bytes) -> list[bytes | None]:
        asked = unpack(question, limit=1 << 26)
        if (site, asked.kind, asked.head.get("round")) == ("birch", "train", 2) and len(lost) < 2:
            lost.append(unpack(answer, limit=1 << 26))
            return [None] if len(lost) == 1 else [answer]
        return [answer]

    link.change = change
    unit = read_json(consortium.train(link) / "unit.json")
    first, second = lost
    assert first.head["nonce"] != second.head["nonce"]
    assert all(first.tensors[name].equal(second.tensors[name]) for name in first.tensors)
    assert unit["rejected"] == []
    found = list(records(tmp_path / "machines/birch/ledger.jsonl"))
    assert [r["round"] for r in found if "weight" in r] == [1, 2, 3]
    (repeat,) = [r for r in found if r.get("kind") == "repeat"]
    assert (repeat["round"], "weight" in found[repeat["repeats"] - 1]) == (2, True)
    assert verify(tmp_path / "machines/birch/ledger.jsonl").sound
