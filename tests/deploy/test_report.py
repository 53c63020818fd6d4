"""The report of a federation over a network: that of the same study on one machine, without images and predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography", reason="the extra 'flower' is not installed")

from tests.links import FakeClock, MemoryLink

from morphfed import __version__
from morphfed.core.errors import ConfigError
from morphfed.core.files import read_json
from morphfed.core.progress import Event
from morphfed.data.drafting import draft
from morphfed.deploy import provision
from morphfed.deploy.bundle import open_bundle
from morphfed.deploy.consent import approve
from morphfed.deploy.coordinator import train_over
from morphfed.deploy.deployment import Deployment
from morphfed.deploy.judging import jobs_of, judge_again, train_alone
from morphfed.deploy.provision import read_federation
from morphfed.deploy.resident import Resident
from morphfed.deploy.results import timed, write_report_of
from morphfed.deploy.review import review
from morphfed.experiment.runner import Options, run_study
from morphfed.experiment.study import SiteConfig
from morphfed.experiment.train_unit import is_done
from morphfed.federation.transports.parcel import Parcel, pack, unpack
from morphfed.privacy.ledger import ChainedLedger, records, verify

NAMES = ("alder", "birch", "cedar")


class Consortium:
    """A federation folder and three sites, one of them held out, each with a manifest of its own images."""

    def __init__(self, study: Path, folder: Path) -> None:
        self.study, self.folder = study, folder
        self.made = provision.init(folder / "fed", study, host="localhost")
        settings, self.agreed = read_federation(self.made.folder)
        self.settings = settings.model_copy(update={"gather": 1.0})
        self.run = self.made.folder / "run"
        self.said: list[Event] = []
        self.residents = {name: self.join(name) for name in self.agreed.everyone}
        self.link = MemoryLink({name: r.answer for name, r in self.residents.items()}, FakeClock())

    def join(self, name: str) -> Resident:
        here = self.folder / "machines" / name
        open_bundle(self.made.folder / "bundles" / f"{name}.zip", here)
        approve(here, here / "bundle" / "study.toml", review(self.agreed))
        ledger = ChainedLedger(here / "ledger.jsonl")
        return Resident(name, here, self.data(name, here), ledger, report=self.said.append)

    def data(self, name: str, here: Path) -> SiteConfig:
        manifest = here / "manifest.csv"
        if not manifest.exists():
            draft(self.study.parent / "films" / name, site=name).manifest.write(manifest)
        return SiteConfig(path=str(manifest))

    def ledger(self, name: str) -> Path:
        return self.folder / "machines" / name / "ledger.jsonl"

    def train(self) -> dict[str, Any]:
        """As `coordinator start`: whatever is not done."""
        todo = [job for job in jobs_of(self.agreed) if not job.is_done(self.agreed, self.run)]
        on = Deployment(self.link, self.agreed, self.settings, self.run, report=self.said.append)
        with timed(self.run):
            for job in todo:
                last = job is todo[-1]
                if job.alone:
                    train_alone(on, job, last=last)
                elif is_done(job.units[0], self.run):
                    judge_again(on, job.units[0], last=last)
                else:
                    train_over(on, job.units[0], last=last)
        assert write_report_of(self.agreed, self.run, report=self.said.append)
        found: dict[str, Any] = read_json(self.run / "results.json")
        return found

    def warnings(self) -> list[str]:
        return [event.text for event in self.said if event.level == "warning"]


def changed(study: Path, *pairs: tuple[str, str]) -> Path:
    text = study.read_text()
    for before, after in pairs:
        assert before in text
        text = text.replace(before, after, 1)
    study.write_text(text)
    return study


RELEASE = ("[evaluation]\n", '[evaluation]\nrelease = "scores"\n')
ASKED = (
    "[evaluation]\n",
    '[evaluation]\ncalibrate = "temperature"\nadapt = "norms"\nunknown = true\nretrogress = true\n',
)
OWN_MODELS = ("fedavg", "fedbn", "fedper", "ditto", "pfa", "prr", "hypernetwork")
PERSONAL = ("[arms.fedavg]\n", "".join(f"[arms.{name}]\n" for name in OWN_MODELS))


def without_pictures(results: dict[str, Any]) -> dict[str, Any]:
    for unit in results["arms"]:
        for block in unit["sites"].values():
            block["errors"] = []
            block.pop("overlays", None)
    return results


def of_unit(unit: dict[str, Any]) -> dict[str, Any]:
    """What must be the same of a unit: not how long it took, nor where it ran."""
    gone = {"seconds", "device", "images_on", "over", "ledgers", "models", "bytes_up", "bytes_down"}
    history = [{k: v for k, v in line.items() if k != "seconds"} for line in unit["history"]]
    return {**{k: v for k, v in unit.items() if k not in gone}, "history": history}


def same(there: dict[str, Any], here: dict[str, Any]) -> None:
    """The reports of a federation over a network and of the same study on one machine."""
    here = without_pictures(here)
    assert [of_unit(unit) for unit in there["arms"]] == [of_unit(unit) for unit in here["arms"]]
    for key in ("summary", "comparisons", "options", "retrogress"):
        assert there.get(key) == here.get(key), key
    for site, block in here["data"]["sites"].items():
        told = there["data"]["sites"][site]
        for key in set(block) - {"samples", "left_out", "unreadable"}:
            assert told[key] == block[key], f"{site}: {key}"
        assert sum(entry["n"] for entry in told["left_out"]) == sum(entry["n"] for entry in block["left_out"])


@pytest.mark.parametrize("more", [(), (ASKED, PERSONAL)], ids=["plain", "every option, personal arms"])
def test_the_report_has_the_numbers_of_the_same_study_on_one_machine(
    more: tuple[tuple[str, str], ...], tiny: Path, tmp_path: Path
) -> None:
    changed(tiny, RELEASE, *more)
    here = read_json(run_study(tiny, Options(tmp_path / "runs")).results)
    consortium = Consortium(tiny, tmp_path)
    there = consortium.train()
    assert consortium.warnings() == []
    same(there, here)
    assert there["network"]["missing"] == []
    page = (consortium.run / "report.html").read_text()
    assert "data:image/jpeg" not in page
    for name, resident in consortium.residents.items():
        assert resident.over, name
        assert verify(consortium.ledger(name)).sound


def test_a_held_out_site_is_never_asked_to_train_or_count(tiny: Path, tmp_path: Path) -> None:
    changed(tiny, RELEASE, ("[train]\n", '[train]\nloss = { kind = "logit_adjusted", prior = "federation" }\n'))
    consortium = Consortium(tiny, tmp_path)
    consortium.train()
    assert {kind for site, kind, _ in consortium.link.traffic if site == "cedar"} == {"facts", "judge", "finish"}
    agreed = consortium.agreed
    head = {"study": agreed.hash, "unit": "fedavg/all/seed-0", "site": "cedar", "version": __version__}
    for kind in ("train", "counts", "evaluate", "sums"):
        answer = unpack(consortium.residents["cedar"].answer(pack(Parcel(kind, head))), limit=0)
        assert answer.kind == "refusal"
        assert "takes no part in these rounds" in answer.head["why"]
    # What was counted before round 1 is what the training sites have.
    unit = read_json(consortium.run / "units/fedavg/all/seed-0/unit.json")
    blocks = read_json(consortium.run / "results.json")["data"]["sites"]
    parts = [blocks[site]["classes"] for site in ("alder", "birch")]
    assert unit["class_counts"] == [sum(p[name]["train"] for p in parts) for name in agreed.study.classes]


def test_what_leaves_is_numbers_in_the_ledger_and_names_no_image(tiny: Path, tmp_path: Path) -> None:
    changed(tiny, RELEASE)
    consortium = Consortium(tiny, tmp_path)
    consortium.train()
    for name in NAMES:
        # A held-out site may be asked in either order.
        told = sorted((r for r in records(consortium.ledger(name)) if "findings" in r), key=lambda r: r["findings"])
        assert [r["findings"] for r in told] == ["facts", "scores"]
        rows = [item for item in told[1]["items"] if "shape" in item]
        assert {tuple(item["shape"]) for item in rows} == {(101,)}  # resamples = 100, and the images as they are
        # Beside the rows only single numbers leave; of them the gate holds the names.
        singles = [item for item in told[1]["items"] if "shape" not in item]
        assert all(set(item) == {"name", "value", "bytes"} for item in singles)
        text = consortium.ledger(name).read_text()
        films = consortium.study.parent / "films" / name
        files = [path.stem for path in films.rglob("*.jpg")]
        assert files
        patients = {stem.partition("_")[0] for stem in files}
        assert not [word for word in (*files, *patients) if word in text]


def test_local_models_are_judged_at_home_and_stay_there(tiny: Path, tmp_path: Path) -> None:
    changed(tiny, RELEASE, ("[arms.fedavg]\n", "[arms.local]\n[arms.fedavg]\n"))
    here = read_json(run_study(tiny, Options(tmp_path / "runs")).results)
    consortium = Consortium(tiny, tmp_path)
    there = consortium.train()
    assert consortium.warnings() == []
    told = {unit["model"]: unit for unit in there["arms"]}
    for unit in without_pictures(here)["arms"]:
        mine = of_unit(told[unit["model"]])
        wanted = of_unit(unit)
        at = list(unit["trained_on"]) if unit["arm"] == "local" else list(NAMES)
        wanted["sites"] = {site: wanted["sites"][site] for site in at}
        assert mine == wanted
    known = {json.dumps(row) for row in here["summary"]}
    rows = [json.dumps(row) for row in there["summary"]]
    assert [row for row in rows if row not in known] == []
    assert any(row["model"] == "local (own site)" for row in there["summary"])
    assert {(c["a"], c["b"]) for c in there["comparisons"]} == {("fedavg", "local (own site)")}
    # Corrected over fewer pairs here: the mean of the local models is not known.
    plain = [{k: v for k, v in c.items() if k != "p_holm"} for c in here["comparisons"]]
    assert all({k: v for k, v in c.items() if k != "p_holm"} in plain for c in there["comparisons"])
    assert {kind for site, kind, _ in consortium.link.traffic if site == "cedar"} >= {"judge"}
    assert not list(consortium.run.glob("units/local/**/*best*"))  # no model of theirs came
    for name in ("alder", "birch"):
        kept = tmp_path / "machines" / name / f"models/tiny/local/{name}/seed-0/model.safetensors"
        assert kept.is_file()
        sent = [r for r in records(consortium.ledger(name)) if r.get("unit") == f"local/{name}/seed-0"]
        assert {r["findings"] for r in sent} == {"facts", "history", "scores"} - (
            {"facts"} if len(sent) == 2 else set()
        )


def test_a_site_that_is_away_at_the_end_is_named_and_asked_again(tiny: Path, tmp_path: Path) -> None:
    changed(tiny, RELEASE)
    here = read_json(run_study(tiny, Options(tmp_path / "runs")).results)
    consortium = Consortium(tiny, tmp_path)
    consortium.link.away.add("cedar")
    first = consortium.train()
    assert [gap["site"] for gap in first["network"]["missing"]] == ["cedar"]
    assert list(first["data"]["sites"]) == ["alder", "birch"]
    assert "cedar" in " ".join(consortium.warnings())
    assert "cedar" in (consortium.run / "report.html").read_text()
    consortium.link.away.clear()
    consortium.link.traffic.clear()
    consortium.said.clear()
    same(consortium.train(), here)
    assert "train" not in {kind for _, kind, _ in consortium.link.traffic}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda told, rows: told.update(names=["smith"]), "a str at 'names/#', which is not declared"),
        (lambda told, rows: told["metrics"].update(extra={"value": 1.0}), "a number at 'metrics/extra/value'"),
        (lambda told, rows: told["calibration"].extend([{"n": 1}] * 99), "one more number at 'calibration/#/n'"),
        (lambda told, rows: rows.update(images=rows["found|accuracy"].clone()), "the row 'images'"),
        (lambda told, rows: rows.pop("found|accuracy"), "its scores lack found|accuracy"),
        (lambda told, rows: told.pop("confusion"), "do not fit together"),
        (lambda told, rows: told.update(n=10**6), "its confusion table does not fit"),
    ],
)
def test_scores_that_were_not_declared_or_do_not_fit_are_not_used(
    change: Any, why: str, tiny: Path, tmp_path: Path
) -> None:
    changed(tiny, RELEASE)
    consortium = Consortium(tiny, tmp_path)

    def meddle(site: str, question: bytes, content: bytes) -> list[bytes | None]:
        answer = unpack(content, limit=1 << 26)
        if site != "alder" or unpack(question, limit=1 << 26).kind != "judge" or answer.kind != "answer":
            return [content]
        told, rows = json.loads(json.dumps(answer.head["told"])), dict(answer.tensors)
        change(told, rows)
        return [pack(Parcel(answer.kind, {**answer.head, "told": told}, rows))]

    consortium.link.change = meddle
    found = consortium.train()
    assert [gap["site"] for gap in found["network"]["missing"]] == ["alder"]
    assert why in " ".join(consortium.warnings())


def test_without_a_release_a_held_out_site_cannot_join_and_nothing_more_leaves(tiny: Path, tmp_path: Path) -> None:
    made = provision.init(tmp_path / "fed", tiny, host="localhost")
    assert [bundle.stem for bundle in made.bundles] == ["alder", "birch"]
    with pytest.raises(ConfigError, match="holds it out"):
        made.agreed.at_site("cedar", SiteConfig(path="x"))


def test_the_review_says_what_is_told(tiny: Path) -> None:
    from morphfed.deploy.agreed import load_agreed

    before = review(load_agreed(tiny))
    after = review(load_agreed(changed(tiny, RELEASE)))
    assert "scores of this site's test images" not in before.text
    assert "of this site's test images" in after.text
    assert "held out: cedar" in after.text
    assert after.leaves > before.leaves + 8 * 101 * 8
