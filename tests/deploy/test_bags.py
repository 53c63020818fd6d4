"""A study of bags over a network: the report of the same study on one machine, and what has to be agreed on before."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="the extra 'flower' is not installed")

from tests.deploy.test_report import Consortium, changed, of_unit, same, without_pictures
from tests.experiment.test_mil_run import SITES, STUDY, write_site

from morphfed.core.errors import ConfigError
from morphfed.core.files import read_json
from morphfed.deploy import provision
from morphfed.deploy.agreed import load_agreed
from morphfed.deploy.review import review
from morphfed.experiment.runner import Options, run_study
from morphfed.experiment.study import SiteConfig
from morphfed.privacy.ledger import records

ARMS = "[arms.local]\n[arms.centralised]\n[arms.fedavg]\n[arms.ditto]\n"
AGREED = (
    ('name = "mil/clam_sb"\n', 'name = "mil/clam_sb"\ndim = 5\n'),
    ("[data]\n", '[data]\nencoder = "resnet18"\n'),
    ("[evaluation]\n", '[evaluation]\nrelease = "scores"\ncalibrate = "temperature"\n'),
)


class Slides(Consortium):
    """Each site has a folder of bags with its table."""

    def data(self, name: str, here: Path) -> SiteConfig:
        labels = {"benign": "normal"} if name == "birch" else {}
        return SiteConfig(path=str(self.study.parent / "bags" / name), labels=labels)


def bags_study(folder: Path) -> Path:
    """A study beside its three sites' bags, with what has to be agreed on over a network."""
    for seed, (name, n) in enumerate(SITES.items()):
        write_site(folder / "bags" / name, n, seed, negative="benign" if name == "birch" else "normal")
    path = folder / "study.toml"
    path.write_text(STUDY)
    return changed(path, *AGREED)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return bags_study(tmp_path)


def test_the_report_is_that_of_one_machine(study: Path, tmp_path: Path) -> None:
    changed(study, (ARMS, "[arms.fedavg]\n[arms.ditto]\n[arms.hypernetwork]\n"))
    changed(study, ("[data]\n", '[data]\nstandardise = "site"\n'))
    here = read_json(run_study(study, Options(tmp_path / "runs")).results)
    consortium = Slides(study, tmp_path)
    there = consortium.train()
    assert consortium.warnings() == []
    for unit in here["arms"]:
        for block in unit["sites"].values():
            block.pop("attention", None)  # stays at its site
    same(there, here)
    assert there["data"]["sites"]["alder"]["bags"]["encoder"] == "resnet18"
    assert there["data"]["sites"]["cedar"]["source"] == "bags"
    page = (consortium.run / "report.html").read_text()
    assert "data:image/png" not in page
    names = [path.stem for path in (tmp_path / "bags").rglob("*.h5")]
    told = "".join(consortium.ledger(site).read_text() for site in SITES)
    assert names
    assert not [name for name in names if name in told or name in page]


def test_local_models_of_bags_stay_at_home(study: Path, tmp_path: Path) -> None:
    changed(study, (ARMS, "[arms.local]\n[arms.fedavg]\n"))
    here = without_pictures(read_json(run_study(study, Options(tmp_path / "runs")).results))
    consortium = Slides(study, tmp_path)
    there = consortium.train()
    assert consortium.warnings() == []
    told = {unit["model"]: of_unit(unit) for unit in there["arms"]}
    for unit in here["arms"]:
        wanted = of_unit(unit)
        if unit["arm"] == "local":  # words do not leave a site
            told[unit["model"]].pop("warnings")
            wanted.pop("warnings")
        at = list(unit["trained_on"]) if unit["arm"] == "local" else list(SITES)
        wanted["sites"] = {site: wanted["sites"][site] for site in at}
        for block in wanted["sites"].values():
            block.pop("attention", None)
        assert told[unit["model"]] == wanted
    assert {r["findings"] for r in records(consortium.ledger("alder")) if "findings" in r} == {
        "facts",
        "history",
        "scores",
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('encoder = "resnet18"\n', 'encoder = "uni2-h"\n'), "data.encoder = 'uni2-h', and there are bags of others"),
        (("dim = 5\n", "dim = 7\n"), "model.dim = 7, and the bags have 5 numbers an instance"),
    ],
    ids=["another encoder", "another width"],
)
def test_a_site_with_other_features_says_so_and_trains_nothing(
    change: tuple[str, str], said: str, study: Path, tmp_path: Path
) -> None:
    changed(study, (ARMS, "[arms.fedavg]\n"), change)
    consortium = Slides(study, tmp_path)
    with pytest.raises(Exception, match="alder"):
        consortium.train()
    assert said in " ".join(consortium.warnings())


@pytest.mark.parametrize(
    ("gone", "said"),
    [("dim = 5\n", "model.dim is not set"), ('encoder = "resnet18"\n', "data.encoder is not set")],
)
def test_what_only_all_sites_together_would_tell_has_to_be_written(gone: str, said: str, study: Path) -> None:
    changed(study, (gone, ""))
    with pytest.raises(ConfigError, match=said):
        load_agreed(study)


def test_the_federations_readme_says_how_a_site_names_its_bags(study: Path, tmp_path: Path) -> None:
    made = provision.init(tmp_path / "fed", study, host="localhost")
    assert "--data slides.csv --option bags=FEATURES --folder NAME" in (made.folder / "README.md").read_text()


def test_the_review_speaks_of_bags(study: Path) -> None:
    text = review(load_agreed(study)).text
    assert "bags      features, 5 numbers an instance, of the encoder resnet18; 50% of them train" in text
    assert "image" not in text
