"""Studies whose uploads are coded: settings, plan, bytes in the results, the report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from morphfed.core.errors import ConfigError
from morphfed.experiment.plan import plan_study, render_plan
from morphfed.experiment.runner import Options, run_study
from morphfed.experiment.study import load_study

SMALL = 'small = { algorithm = "fedavg", federation = { upload = "int8", download = "bf16" } }'
ARMS = f"arms={{ local = {{}}, fedavg = {{}}, {SMALL} }}"


def test_a_codes_name_alone_will_do_and_an_arm_may_have_its_own(tiny: Path) -> None:
    study, arms = load_study(tiny, ["federation.upload=bf16", ARMS])
    assert study.federation.upload.code == "bf16"
    assert arms["fedavg"].federation.upload.code == "bf16"
    small = arms["small"].federation
    assert (small.upload.code, small.upload.scale, small.upload.error_feedback) == ("int8", "channel", True)
    assert (small.download, small.rounds) == ("bf16", 3)
    _, arms = load_study(tiny, ["federation.upload.code=topk", "federation.upload.share=0.05"])
    assert arms["fedavg"].federation.upload.share == 0.05


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("federation.upload=int4", "'federation.upload.code' = 'int4': there is no code 'int4'.*int8"),
        ("federation.upload={code='int8', share=0.1}", "'share' is no key of the code 'int8'"),
        ("federation.upload={code='topk', share=0}", "'federation.upload.share' = 0"),
        ("federation.upload={cod='topk'}", "unknown key 'federation.upload.cod'. Did you mean 'code'"),
        ("federation.download=int8", "'federation.download' = 'int8'"),
    ],
)
def test_bad_settings_are_refused_with_the_key(tiny: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_study(tiny, [override])


def test_plan_results_ledger_and_report_say_the_same_bytes(tiny: Path) -> None:
    short = [ARMS, "federation.rounds=2", "evaluation.images=false"]
    plan = plan_study(tiny, short, measure=False)
    planned = {unit["model"]: unit["megabytes_per_round"] * 1e6 for unit in plan["units"]}
    assert re.search(r"small .* a round \(up int8, down bf16\)", render_plan(plan))
    done = run_study(tiny, Options(tiny.parent / "runs", overrides=short))
    assert not done.failed
    units = {unit["model"]: unit for unit in json.loads(done.results.read_text())["arms"]}
    numbers = 2 * 4 * 8  # of two sites a round: loss, steps, images and the weight
    for model in ("fedavg", "small"):
        moved = units[model]["bytes_up"] + units[model]["bytes_down"]
        assert moved == pytest.approx(2 * (planned[model] + numbers), abs=1)
    assert units["small"]["bytes_up"] < 0.27 * units["fedavg"]["bytes_up"]
    assert 0.5 <= units["small"]["bytes_down"] / units["fedavg"]["bytes_down"] < 0.52
    assert units["local/alder"]["bytes_up"] == planned["local/alder"] == 0
    ledger = done.run / "units/small/all/seed-0/ledger.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    uploads = [line for line in lines if line["tensors"]]
    assert sum(line["bytes"] for line in uploads) == units["small"]["bytes_up"]
    assert all("changes of weights as int8" in line["purpose"] for line in uploads)
    page = done.report.read_text()
    assert "small: the sites sent the changes of their weights in one byte a number" in page
    assert "the sites got the weights rounded to bfloat16" in page
    assert "Error feedback fixes SignSGD" in page
