"""The study file: every mistake is refused before any work, with the nearest known name."""

from __future__ import annotations

from pathlib import Path

import pytest

from morphfed.core.errors import ConfigError
from morphfed.experiment.resolve import differences, resolve
from morphfed.experiment.study import load_study
from morphfed.experiment.units import units_of


def test_units_of_all_arms(tiny: Path) -> None:
    study, arms = load_study(tiny, ["arms.local={}", "arms.centralised={}", "arms.prox={algorithm='fedprox', mu=0.5}"])
    found = [(u.model, u.trained_on, u.pooled, u.moves) for u in units_of(study, arms)]
    both = ("alder", "birch")
    assert found == [
        ("fedavg", both, False, True),
        ("local/alder", ("alder",), False, False),
        ("local/birch", ("birch",), False, False),
        ("centralised", both, True, False),
        ("prox", both, False, True),
    ]
    assert arms["prox"].config.model_dump() == {"weighting": "images", "mu": 0.5}


def test_an_arm_may_change_model_and_training(tiny: Path) -> None:
    _, arms = load_study(tiny, ["arms.gn={algorithm='fedavg', model={norm='group'}, train={loss={kind='focal'}}}"])
    assert (arms["gn"].model.norm, arms["fedavg"].model.norm) == ("group", "batch")
    assert (arms["gn"].train.loss.kind, arms["gn"].train.lr) == ("focal", 1e-3)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("train.learning_rate=0.1", "unknown key 'train.learning_rate'"),
        ("federation.round=3", "unknown key 'federation.round'. Did you mean 'rounds'"),
        ("arms.fedavg.mu=0.1", "unknown key 'arms.fedavg.mu'"),
        ("arms.fedprox.mue=0.1", "unknown key 'arms.fedprox.mue'. Did you mean 'mu'"),
        ("arms.fedavgg={}", "no algorithm 'fedavgg'. Did you mean 'fedavg'"),
        ("arms.fedavg.train={lr=-1}", "arms.fedavg.train: 'lr' = -1"),
        ("arms.fedavg.train=3", "arms.fedavg.train must be a table"),
        ("held_out=['ceder']", "'ceder', which is not in .sites.. Did you mean 'cedar'"),
        ("held_out=['alder','birch','cedar']", "every site is held out"),
        ("classes=['neutrophil','lymphocites']", "lymphocites"),
        ("classes=['neutrophil']", "classes"),
        ("seeds=[1,1]", "distinct"),
        ("name='Four Labs'", "lower-case"),
        ("sites.Alder={path='alder'}", "'Alder': use lower-case"),
        ("train.lr='fast'", "'train.lr' = 'fast'"),
        ("nonsense", "'nonsense' is not an override"),
    ],
)
def test_mistakes(tiny: Path, assignment: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_study(tiny, [assignment])


def test_missing_and_broken_files(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text("name = tiny")
    with pytest.raises(ConfigError, match="not valid TOML.*line 1"):
        load_study(tmp_path / "study.toml")
    with pytest.raises(ConfigError, match=r"studi\.toml does not exist. Did you mean 'study.toml'"):
        load_study(tmp_path / "studi.toml")


def test_a_gpu_that_is_not_there(tiny: Path) -> None:
    study, arms = load_study(tiny, ["compute.device='cuda:7'"])
    with pytest.raises(ConfigError, match="no such GPU"):
        resolve(study, arms, tiny.parent)
    study, arms = load_study(tiny, ["compute.device='gpu'"])
    with pytest.raises(ConfigError, match="is no device"):
        resolve(study, arms, tiny.parent)


def test_where_it_runs_is_no_part_of_what_is_asked(tiny: Path) -> None:
    one = resolve(*load_study(tiny, ["compute.jobs=1"]), tiny.parent)
    two = resolve(*load_study(tiny, ["compute.jobs=2"]), tiny.parent)
    assert one.asked() == two.asked()
    other = resolve(*load_study(tiny, ["train.lr=0.5"]), tiny.parent)
    assert "arms.fedavg.train.lr: 0.001 → 0.5" in differences(one.asked(), other.asked())


def test_every_example_is_valid() -> None:
    for path in (Path(__file__).resolve().parents[2] / "examples").glob("*.toml"):
        study, arms = load_study(path)
        assert units_of(study, arms)
