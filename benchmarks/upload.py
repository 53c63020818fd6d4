"""What a site uploads in a round: the tuned classifier in coded changes, against the whole network in fp32.

Real images of four laboratories (``examples/four-labs.toml``: Barcelona, Tecom and BCCD train), MobileNetV2 from
ImageNet at 96 px, FedAvg. Both sides are ordinary studies and the bytes are those of their results. Two comparisons,
which must not be confused:

* *the same tuned model*: head tuning with coded uploads against head tuning with fp32 uploads. Is anything lost by
  the code?
* *the fully tuned model*: head tuning with coded uploads against the whole network, trained and sent in fp32. Is
  anything lost by sending so little?

Accuracy is balanced accuracy on the test parts, mean over the training sites. The head is trained for 30 rounds on
stored features, the whole network for fewer (``--full-rounds``): a round of it takes a hundred times as long.

    python benchmarks/upload.py [--full-rounds 5] [--seeds 3]

Images and weights are looked for where the tests do: ``MORPHFED_SHARED``, else ``../shared/data``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from _table import NotMeasuredError, Options, Row, rows_are_wanted, run
from morphfed.core.files import read_json
from morphfed.data.synthetic import PRESETS, write_films
from morphfed.experiment.runner import Options as RunOptions
from morphfed.experiment.runner import run_study
from morphfed.models.backbone import ModelConfig, build

PROJECT = Path(__file__).resolve().parents[1]
CODES = ("bf16", "int8")
POINT = 0.01
HEAD_ROUNDS = 30

QUICK_STUDY = """\
name = "drawn"
classes = ["neutrophil", "lymphocyte"]
[sites]
alder = { path = "alder" }
birch = { path = "birch" }
[data]
root = "films"
image_size = 32
[model]
name = "resnet10t"
weights = "weights.safetensors"
[train]
batch_size = 8
"""


def shared() -> Path:
    """The folder of real images and weights.

    Raises:
        NotMeasuredError: there is none.
    """
    given = os.environ.get("MORPHFED_SHARED")
    folder = Path(given) if given else PROJECT.parent / "shared" / "data"
    if not (folder / "weights" / "mobilenetv2_100.imagenet.safetensors").is_file():
        raise NotMeasuredError("there are no real images here: set MORPHFED_SHARED")
    return folder.resolve()


def four_labs(folder: Path) -> tuple[Path, list[str]]:
    """The study of the examples, with the network of this benchmark."""
    data = shared()
    shutil.copy(PROJECT / "examples" / "four-labs.toml", folder / "study.toml")
    weights = data / "weights" / "mobilenetv2_100.imagenet.safetensors"
    return folder / "study.toml", [
        f"data.root={data / 'cells'}",
        "model.name=mobilenetv2_100",
        f"model.weights={weights}",
    ]


def drawn(folder: Path) -> tuple[Path, list[str]]:
    """Two sites with a few drawn cells and a small network."""
    sites = [PRESETS["alder"], PRESETS["birch"]]
    write_films(folder / "films", sites, dict.fromkeys(("neutrophil", "lymphocyte"), 10), seed=0)
    network = build(ModelConfig(name="resnet10t"), classes=2, image_size=32, seed=0).module
    save_file(network.state_dict(), folder / "weights.safetensors")
    (folder / "study.toml").write_text(QUICK_STUDY, encoding="utf-8")
    return folder / "study.toml", []


def results(study: Path, overrides: Sequence[str], arms: Mapping[str, str], seeds: int, name: str) -> dict[str, Any]:
    """``results.json`` of a study with these arms; the cache of images and features is shared between calls."""
    asked = ", ".join(f"{arm} = {{ {keys} }}" for arm, keys in arms.items())
    quiet = ["data.check=false", "evaluation.images=false", "evaluation.resamples=100", "evaluation.use=last"]
    alone = ["compute.jobs=1", "compute.threads=1", "train.precision=fp32"]
    chosen = [*overrides, *quiet, *alone, f"seeds={list(range(seeds))}", f"arms={{ {asked} }}"]
    done = run_study(study, RunOptions(study.parent / "runs", study.parent / "runs" / name, overrides=chosen))
    assert not done.failed, done.failed
    found: dict[str, Any] = read_json(done.run / "results.json")
    return found


def accuracy(found: Mapping[str, Any], arm: str, scope: str) -> float | None:
    """Balanced accuracy of an arm, mean over seeds."""
    wanted = {"model": arm, "scope": scope, "metric": "balanced_accuracy"}
    return next((row["mean"] for row in found["summary"] if wanted.items() <= row.items()), None)


def upload(found: Mapping[str, Any], arm: str) -> float:
    """Bytes that one site sends in one round."""
    units = [u for u in found["arms"] if u["arm"] == arm]
    return statistics.fmean(u["bytes_up"] / u["rounds"] / len(u["trained_on"]) for u in units)


def measure(*, quick: bool, full_rounds: int, seeds: int) -> dict[str, dict[str, float | None]]:
    """Bytes and accuracies of every arm."""
    with tempfile.TemporaryDirectory() as name:
        study, overrides = (drawn if quick else four_labs)(Path(name))
        plain = 'algorithm = "fedavg", weighting = "uniform"'
        rounds = 2 if quick else HEAD_ROUNDS
        heads = {
            f"head-{code}": f'{plain}, model = {{ tune = "head" }}, train = {{ lr = 1e-3 }}, '
            f'federation = {{ rounds = {rounds}, upload = "{code}" }}'
            for code in ("fp32", *CODES)
        }
        full = {"full": f"{plain}, federation = {{ rounds = {full_rounds} }}"}
        tuned = results(study, overrides, heads, seeds, "heads")
        whole = results(study, overrides, full, 1, "full")
    return {
        arm: {
            "bytes": upload(found, arm),
            "accuracy": accuracy(found, arm, "mean_training"),
            "held_out": accuracy(found, arm, "mean_held_out"),
        }
        for found, arms in ((tuned, heads), (whole, full))
        for arm in arms
    }


def _row(code: str, against: str, found: Mapping[str, Mapping[str, Any]], note: str, *, quick: bool) -> Row:
    ours, theirs, whole = found[f"head-{code}"], found[against], found["full"]
    share = ours["bytes"] / whole["bytes"]
    gap = ours["accuracy"] - theirs["accuracy"]
    equal = "the same head, uploads in fp32" if against == "head-fp32" else "the whole network, fully tuned"
    return Row(
        f"upload of a site a round, head in {code} + error feedback; accuracy against {equal}",
        f"{ours['bytes'] / 1e3:.3g} kB; accuracy {ours['accuracy']:.3f}",
        f"whole network in fp32 {whole['bytes'] / 1e6:.3g} MB; {equal}: accuracy {theirs['accuracy']:.3f}",
        f"{100 * share:.2g} %; accuracy {100 * gap:+.1f} points",
        "≤ 1 % within 1 point",
        None if quick else share <= 0.01 and gap >= -POINT,
        note,
    )


def rows(options: Options) -> list[Row]:
    full_rounds, seeds = (1, 1) if options.quick else (5, 3)
    try:
        found = measure(quick=options.quick, full_rounds=full_rounds, seeds=seeds)
    except NotMeasuredError as why:
        return [Row("upload of a site a round, head in coded changes", f"not measured: {why}")]
    note = (
        f"Balanced accuracy, mean over the training sites. Heads: {seeds} seed(s), {HEAD_ROUNDS} rounds; the whole "
        f"network, fully tuned: one seed, {full_rounds} round(s), a pass each. The head in fp32 is "
        f"{found['head-fp32']['bytes'] / 1e3:.3g} kB, which is most of the saving; the code takes the rest."
    )
    pairs = [(code, against) for against in ("head-fp32", "full") for code in CODES]
    return [_row(code, against, found, note, quick=options.quick) for code, against in pairs]


def main() -> None:
    if rows_are_wanted():
        return run(rows, __doc__)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full-rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parsed = parser.parse_args()
    print(json.dumps(measure(quick=False, full_rounds=parsed.full_rounds, seeds=parsed.seeds), indent=1))


if __name__ == "__main__":
    main()
