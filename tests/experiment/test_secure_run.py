"""Studies with secure aggregation: settings, refusals with their reasons, plan, results and report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="the extra 'secure' is not installed")

from morphfed.core.errors import ConfigError
from morphfed.experiment.plan import plan_study, render_plan
from morphfed.experiment.runner import Options, run_study
from morphfed.experiment.study import load_study

ON = "federation.secure=true"


def arms_of(*arms: str) -> str:
    return f"arms={{ {', '.join(arms)} }}"


def test_off_unless_a_study_says_so_by_word_or_table(tiny: Path) -> None:
    assert not load_study(tiny)[0].federation.secure.on
    assert load_study(tiny, [ON])[0].federation.secure.on
    off = "off={algorithm='fedavg', federation={secure=false}}"
    study, arms = load_study(tiny, ["federation.secure.bits=16", arms_of("fedavg={}", off)])
    assert not arms["off"].federation.secure.on
    assert study.federation.secure.on
    assert arms["fedavg"].federation.secure.bits == 16
    assert arms["fedavg"].federation.secure.threshold_for(2) == 2
    assert [arms["fedavg"].federation.secure.threshold_for(n) for n in (3, 4, 5, 10)] == [2, 3, 3, 6]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            [ON, arms_of("fedmedian={}")],
            "arms.fedmedian: federation.secure: 'fedmedian' cannot work with sums: it",
        ),
        ([ON, arms_of("krum={}")], "looks at each site's upload by itself"),
        ([ON, arms_of("ida={}")], "looks at each site's upload by itself"),
        ([ON, arms_of("qfedavg={lipschitz=1.0}")], "'qfedavg' cannot work with sums"),
        ([ON, arms_of("hypernetwork={}")], "'hypernetwork' cannot work with sums"),
        ([ON, arms_of("pfa={}")], "'pfa' cannot work with sums"),
        ([ON, arms_of("prr={}")], "loss = 'cpa' compares the mean features of each site"),
        ([ON, arms_of("prr={loss='task'}")], "aggregation = 'pfa' looks at"),
        ([ON, arms_of("histofl={noise='unweighted'}")], "noise by each upload's spread"),
        ([ON, "federation.upload=int8"], "federation.upload = 'int8' writes each site's numbers in a scale"),
        ([ON, "federation.upload=topk"], "cannot be added under masks"),
        ([ON, "evaluation.retrogress=true"], "evaluation.retrogress sends scores of each site"),
        (["federation.secure.threshold=3"], "threshold = 3, but 2 sites train"),
        (["federation.secure={on=false, bits=16}"], "'bits' has no meaning without secure aggregation"),
        (["federation.secure.bits=8"], "federation.secure.bits"),
        (["federation.secure.treshold=2"], "unknown key 'federation.secure.treshold'. Did you mean 'threshold'"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_summed_is_refused_when_the_study_is_read(tiny: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        load_study(tiny, overrides)


@pytest.mark.parametrize(
    "arm",
    [
        *(f"{name}={{}}" for name in ("fedavg", "fedprox", "fedbn", "fedper", "fedrep", "ditto", "moon", "det")),
        *(f"{name}={{}}" for name in ("scaffold", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "local")),
        "centralised={}",
        "histofl={noise='weighted'}",
        "prr={loss='task', aggregation='mean'}",
    ],
)
def test_rules_that_average_are_accepted(tiny: Path, arm: str) -> None:
    load_study(tiny, [ON, arms_of(arm)])


def test_half_of_the_sites_or_fewer_may_not_open_a_sum() -> None:
    from morphfed.privacy.secure.config import SecureConfig

    assert "not more than half of 4 sites" in SecureConfig(on=True, threshold=2).unfit_for(4)
    assert not SecureConfig(on=True, threshold=3).unfit_for(4)
    assert "needs two training sites" in SecureConfig(on=True).unfit_for(1)


def test_a_run_says_in_plan_results_and_report_that_only_sums_were_seen(tiny: Path, tmp_path: Path) -> None:
    short = ["federation.rounds=2", "evaluation.images=false", "train.loss={kind='class_balanced', prior='federation'}"]
    shown = render_plan(plan_study(tiny, [*short, ON, arms_of("fedavg={}")], measure=False))
    assert "summed under masks of 32 bits, opened by any 2 sites" in shown
    run = run_study(tiny, Options(tmp_path / "runs", overrides=(*short, ON, arms_of("fedavg={}")))).run
    unit = json.loads((run / "units/fedavg/all/seed-0/unit.json").read_text())
    assert unit["secure"] == {"threshold": 2, "sites": 2, "bits": 32, "keys": "unsigned"}
    assert all(set(entry["sites"]["together"]) == {"loss", "steps"} for entry in unit["history"])
    assert not any("loss" in entry["sites"][site] for entry in unit["history"] for site in ("alder", "birch"))
    results = json.loads((run / "results.json").read_text())
    assert results["arms"][0]["secure"]["bits"] == 32
    report = (run / "report.html").read_text()
    assert "secure aggregation (any 2 of 2 sites can open a sum, fewer cannot)" in report
    assert "Practical secure aggregation" in report
    ledger = [json.loads(line) for line in (run / "units/fedavg/all/seed-0/ledger.jsonl").read_text().splitlines()]
    assert not any("weight" in line or line.get("values") for line in ledger)
