"""Studies with hyper-network and noise: settings, plan, refusals, results, the report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from morphfed.core.errors import ConfigError
from morphfed.experiment.plan import plan_study, render_plan
from morphfed.experiment.runner import Options, run_study
from morphfed.experiment.study import load_study
from morphfed.privacy.accounting import epsilon

CALIBRATED = "federation.noise={kind='calibrated', clip=0.5, multiplier=2.0}"
SHORT = ["federation.rounds=2", "evaluation.images=false", "model.norm=group"]


def test_a_kinds_name_alone_will_do_and_an_arm_may_have_its_own(tiny: Path) -> None:
    noisy = "fedprox = { federation = { noise = { kind = 'calibrated', clip = 1.0, multiplier = 4.0 } } }"
    study, arms = load_study(tiny, ["federation.noise=as_published", f"arms={{ fedavg = {{}}, {noisy} }}"])
    assert study.federation.noise.kind == "as_published"
    assert arms["fedavg"].federation.noise.alpha == 0.001
    assert arms["fedprox"].federation.noise.clip == 1.0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("federation.noise=calibrated", "needs clip and multiplier"),
        ("federation.noise=gaussian", "'federation.noise.kind' = 'gaussian'"),
        ("federation.noise.klip=1.0", "unknown key 'federation.noise.klip'. Did you mean 'clip'"),
    ],
)
def test_bad_settings_are_refused_with_the_key(tiny: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_study(tiny, [override])


def test_calibrated_noise_leaves_nothing_clean(tiny: Path) -> None:
    """Running statistics, and prototypes, would go without noise, so that no ε would hold: refused by the plan."""
    with pytest.raises(ConfigError, match=r"arms.fedavg: .*running_mean.*, so that no ε would hold") as refused:
        plan_study(tiny, [CALIBRATED], measure=False)
    assert "model.norm = 'group'" in refused.value.fix
    for norm in ("group", "local"):
        plan_study(tiny, [CALIBRATED, f"model.norm={norm}"], measure=False)
    with pytest.raises(ConfigError, match="prototypes/") as refused:
        plan_study(tiny, [CALIBRATED, "model.norm=group", "arms={prr={}}"], measure=False)
    assert "'prr' sends more than weights" in refused.value.fix


def test_a_hyper_network_that_is_too_large_is_refused_by_the_plan(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="head = 'full' for .* expected at most max_parameters = 100,000,000"):
        plan_study(tiny, ["arms={hypernetwork={head='full'}}"], measure=False)


def test_plan_results_ledger_and_report_say_the_same(tiny: Path) -> None:
    arms = (
        "arms={ local = {}, hypernetwork = { newcomers = ['birch'], newcomer_rounds = 1 }, histofl = { alpha = 0.01 }, "
        "noisy = { algorithm = 'fedavg', federation = { upload = 'int8', noise = { kind = 'calibrated', clip = 0.5, "
        "multiplier = 20.0 } } } }"
    )
    spent = [epsilon(10.0, rounds, 1e-5) for rounds in (1, 2)]
    plan = plan_study(tiny, [*SHORT, arms], measure=False)
    assert re.search(rf"noisy .* \(up int8, noise ε {spent[1]:.3g} in all\)", render_plan(plan))
    done = run_study(tiny, Options(tiny.parent / "runs", overrides=[*SHORT, arms]))
    assert not done.failed
    units = {unit["model"]: unit for unit in json.loads(done.results.read_text())["arms"]}
    assert [entry["epsilon"] for entry in units["noisy"]["history"]] == spent
    assert units["noisy"]["noise"]["epsilon"] == spent[1]
    assert "noise" not in units["local/alder"]
    assert set(units["hypernetwork"]["sites"]) == {"alder", "birch", "cedar"}
    warnings = " ".join(units["hypernetwork"]["warnings"])
    assert "held-out sites use the weights of the mean embedding" in warnings
    assert "birch fitted an embedding only, in the last round" in warnings
    ledger = (done.run / "units" / "noisy" / "all" / "seed-0" / "ledger.jsonl").read_text().splitlines()
    assert [e["noise"]["epsilon"] for line in ledger if "noise" in (e := json.loads(line))] == [
        spent[0],
        spent[0],
        spent[1],
        spent[1],
    ]
    page = done.report.read_text()
    assert "Noise on what travelled" in page
    assert "none: no formal guarantee" in page
    assert f"{spent[1]:.3g} at δ = 1e-05" in page
