"""The two studies of unlike class mixtures: one budget, one model, and PRR-FL's pieces added one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from morphfed.experiment.study import load_study

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PIECES = ("pfa", "pfa-det", "prr-complex")


@pytest.mark.parametrize("name", ["four-labs-imbalanced", "dirichlet-blood"])
def test_arms_differ_in_their_algorithm_alone(name: str) -> None:
    study, arms = load_study(EXAMPLES / f"{name}.toml")
    assert len(study.training_sites) == len(study.sites) == 4
    wanted = {"local", "centralised", "fedavg", "fedprox", "ditto", "fedrep", "scaffold", *PIECES}
    assert wanted | {"pfa-private", "pfa-2022", "pfa-cpa", "prr-2021", "prr", "scaffold-sgd"} == set(arms)
    for arm in arms.values():
        assert (arm.model, arm.federation) == (study.model, study.federation)
        assert arm.train == study.train or arm.name == "scaffold-sgd"
        assert getattr(arm.config, "weighting", "uniform") == "uniform" or arm.algorithm.kind == "baseline"
    chain = [arms[p].config.model_dump() for p in PIECES]
    shared = set(chain[0])
    assert all(piece[key] == chain[0][key] for piece in chain for key in shared)
    assert {k for k in chain[1] if chain[1][k] != chain[2][k]} == {"loss"}
    assert chain[1]["transfer"]
    assert study.train.local_epochs >= 3  # else no pass can sublimate


def test_both_studies_have_the_same_arms() -> None:
    one, two = (load_study(EXAMPLES / f"{name}.toml")[1] for name in ("four-labs-imbalanced", "dirichlet-blood"))
    assert {k: a.config for k, a in one.items()} == {k: a.config for k, a in two.items()}


def test_the_study_of_norms_is_the_dealt_out_one_with_another_network() -> None:
    one, ours = load_study(EXAMPLES / "dirichlet-blood.toml")
    two, arms = load_study(EXAMPLES / "dirichlet-norms.toml")
    assert (one.sites, one.data, one.train, one.federation) == (two.sites, two.data, two.train, two.federation)
    assert one.model != two.model
    assert set(arms) - set(ours) == {"fedbn"}
    assert all(arms[name].config == ours[name].config for name in set(arms) & set(ours))
