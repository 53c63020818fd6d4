"""A site trains what its operator approved, to the letter, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from morphfed.cli import call
from morphfed.core.errors import ConfigError, ConsentError
from morphfed.core.files import read_json
from morphfed.deploy.agreed import load_agreed
from morphfed.deploy.consent import approvals, approve, approved, withdraw
from morphfed.deploy.review import Review
from morphfed.experiment.study import SiteConfig
from morphfed.models.backbone import ModelConfig, build

STUDY = """\
name = "pair"
seeds = [0, 1]
classes = ["neutrophil", "lymphocyte"]
held_out = ["cedar"]
[sites]
alder = { path = "here" }
birch = { path = "there" }
cedar = { path = "elsewhere" }
[data]
image_size = 32
[model]
name = "resnet10t"
[train]
batch_size = 8
[federation]
rounds = 3
[arms.local]
[arms.fedavg]
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


def test_the_hash_is_the_same_wherever_the_images_are(study: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    text = STUDY.replace('"here"', '"/data/films"').replace("[data]", '[compute]\ndevice = "cpu"\n[data]\nroot = "x"')
    other.write_text('title = "ours"\n' + text.replace("[arms.local]", "[arms.centralised]"))
    assert load_agreed(other).hash == load_agreed(study).hash


@pytest.mark.parametrize(
    "override",
    [
        "train.lr=1e-3",
        "federation.rounds=4",
        "federation.upload=int8",
        "federation.quorum=1.0",
        "seeds=[0]",
        "model.name=resnet14t",
        "data.image_size=64",
        "data.split.seed=1",
        "arms.fedavg.algorithm=fedmedian",
        "arms.fedprox={}",
        "evaluation.calibrate=temperature",
        "evaluation.retrogress=true",
        "evaluation.release=scores",
        "federation.noise={kind='as_published', draw='secret'}",
        "sites.dogwood={path='x'}",
        "held_out=[]",
        'classes=["neutrophil", "monocyte"]',
    ],
)
def test_whatever_changes_what_is_trained_or_sent_changes_the_hash(override: str, study: Path) -> None:
    assert load_agreed(study, [override]).hash != load_agreed(study).hash


def test_where_scores_are_told_local_models_and_held_out_sites_take_part(study: Path) -> None:
    agreed = load_agreed(study, ["evaluation.release=scores"])
    assert list(agreed.arms) == ["local", "fedavg"]
    assert agreed.arms["local"].train.precision == "fp32"
    assert (agreed.sites, agreed.held_out) == (["alder", "birch"], ["cedar"])
    assert [unit.key for unit in agreed.units] == ["fedavg/all/seed-0", "fedavg/all/seed-1"]
    cedar = agreed.at_site("cedar", SiteConfig(path="x"))
    assert (list(cedar.sites), cedar.held_out, cedar.training_sites) == (["cedar"], ("cedar",), [])


def test_only_arms_that_move_models_are_trained(study: Path) -> None:
    agreed = load_agreed(study)
    assert [unit.key for unit in agreed.units] == ["fedavg/all/seed-0", "fedavg/all/seed-1"]
    assert agreed.sites == ["alder", "birch"]
    assert agreed.arms["fedavg"].train.precision == "fp32"


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("arms={local={}}", "no arm moves"),
        ("federation.noise.kind=as_published", "could subtract it"),
        ('held_out=["birch", "cedar"]', "one site trains"),
    ],
)
def test_studies_that_need_no_network_are_refused(override: str, why: str, study: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        load_agreed(study, [override])


def test_a_site_sees_the_study_with_its_own_images_only(study: Path) -> None:
    mine = load_agreed(study).at_site("birch", SiteConfig(path="/own/manifest.csv"))
    assert list(mine.sites) == ["birch"]
    assert mine.training_sites == ["birch"]
    with pytest.raises(ConfigError, match="holds it out"):
        load_agreed(study).at_site("cedar", SiteConfig(path="x"))
    with pytest.raises(ConfigError, match="alder, birch"):
        load_agreed(study).at_site("elm", SiteConfig(path="x"))


def test_what_is_approved_is_kept_and_what_is_not_is_refused(study: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    wanted = load_agreed(study).hash
    with pytest.raises(ConsentError, match=f"'birch'.*{wanted[:12]}.*not approved"):
        approved("birch", site, wanted)
    made = approve(site, study, Review("the text", 7, 8))
    assert made.hash == wanted
    assert approved("birch", site, wanted).hash == wanted
    assert read_json(site / "approved" / f"{wanted}.json")["shown"] == "the text"
    changed = load_agreed(study, ["train.lr=0.5"]).hash
    with pytest.raises(ConsentError, match="not approved"):
        approved("birch", site, changed)
    withdraw(site, wanted)
    assert approvals(site) == []
    with pytest.raises(ConsentError, match="not approved"):
        approved("birch", site, wanted)


def test_an_approved_copy_that_was_edited_is_refused(study: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    wanted = approve(site, study, Review("", 0, 0)).hash
    copy = site / "approved" / f"{wanted}.toml"
    copy.write_text(copy.read_text().replace("rounds = 3", "rounds = 300"))
    with pytest.raises(ConsentError, match="changed"):
        approved("birch", site, wanted)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "*", "a/../b"])
def test_a_hash_from_the_network_is_no_path(name: str, study: Path, tmp_path: Path) -> None:
    approve(tmp_path / "site", study, Review("", 0, 0))
    with pytest.raises(ConsentError, match="not approved"):
        approved("birch", tmp_path / "site", name)


def test_the_review_says_what_leaves_and_how_much(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["site", "review", str(study)]) == 0
    text = capsys.readouterr().out
    net = build(ModelConfig(name="resnet10t"), classes=2, image_size=32, seed=0).module
    sent = [t for name, t in net.state_dict().items() if not name.endswith("num_batches_tracked")]  # counters stay
    moved = sum(t.numel() * 4 for t in sent)
    assert f"{len(sent)} tensors, {moved / 1e6:.3g} MB" in text
    numbers = 4 * 8 + 3 * 8  # weight, images, loss, steps; three validation means
    total = 2 * 3 * (moved + numbers)
    assert f"about {total / 1e6:.3g} MB leave this site" in text
    assert "balanced_accuracy" in text
    assert load_agreed(study).hash in text
    for word in ("images, labels", "brings no code", "ledger"):
        assert word in text


def test_the_commands_approve_list_and_withdraw(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, wanted = str(tmp_path / "site"), load_agreed(study).hash
    assert call(["site", "approve", str(study), "--folder", site]) == 0
    assert wanted in capsys.readouterr().out
    assert call(["site", "approve", "--list", "--folder", site]) == 0
    assert wanted in capsys.readouterr().out
    assert call(["site", "approve", "--withdraw", wanted, "--folder", site]) == 0
    assert call(["site", "approve", "--withdraw", wanted, "--folder", site]) == 9
    assert call(["site", "approve", "--folder", site]) == 2


def test_the_ledger_command_prints_verifies_and_names_the_broken_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.privacy.test_ledger import _filled

    site = tmp_path / "site"
    assert call(["site", "ledger", str(tmp_path)]) == 0
    assert "nothing has left" in capsys.readouterr().out
    head = _filled(site / "ledger.jsonl").head
    assert call(["site", "ledger", str(site)]) == 0
    out = capsys.readouterr().out
    assert f"4 records, 128 bytes left this site\nsound: every record is as it was written; last hash {head}" in out
    assert "round 2" in out
    assert "loss=0.5" in out
    path = site / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round":3', b'"round":9'))
    assert call(["site", "ledger", str(site)]) == 9
    assert "BROKEN at line 3: it was altered" in capsys.readouterr().out
