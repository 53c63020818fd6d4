"""Simulated sites: every image once, patients whole, the draw's moments, and the command."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from morphfed.cli.data import partition as command
from morphfed.core.errors import ConfigError, DataError
from morphfed.data.manifest import COLUMNS, Manifest
from morphfed.data.partition import _deal, partition

LABELS = ["neutrophil_segmented", "lymphocyte", "monocyte"]


def make(n: int, labels: list[str | None], **columns: list[str | None]) -> Manifest:
    frame = pd.DataFrame({name: [None] * n for name in COLUMNS})
    frame["path"] = [f"{i:04d}.png" for i in range(n)]
    frame["site"] = "barcelona"
    frame["label"] = labels
    frame["source_label"] = ["own" if label is None else label for label in labels]
    frame["source"] = "folders"
    for name, values in columns.items():
        frame[name] = values
    return Manifest(frame, Path("images"))


def three(n: int = 300) -> Manifest:
    return make(n, [LABELS[i % 3] for i in range(n)])


def deal(manifest: Manifest, **keys: object) -> dict[str, list[str]]:
    settings = {"sites": 4, "alpha": 0.1, "seed": 0, "name": "sim", **keys}
    return {site: list(m.frame["path"]) for site, m in partition(manifest, **settings).sites.items()}  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", [0.1, 1.0, 100.0])
def test_every_image_once_and_no_site_empty(alpha: float) -> None:
    found = partition(three(), sites=4, alpha=alpha, seed=1, name="sim", least=10)
    assert list(found.sites) == ["sim-1", "sim-2", "sim-3", "sim-4"]
    paths = [p for m in found.sites.values() for p in m.frame["path"]]
    assert sorted(paths) == sorted(three().frame["path"])
    for site, manifest in found.sites.items():
        assert len(manifest) >= 10
        assert set(manifest.frame["site"]) == {site}
        assert found.counts[site] == Counter(manifest.frame["label"])


def test_the_same_seed_the_same_sites_in_any_order_of_rows() -> None:
    manifest = three()
    turned = manifest.where(np.ones(len(manifest), dtype=bool))
    turned = Manifest(turned.frame.iloc[::-1], manifest.root)
    assert {s: sorted(p) for s, p in deal(manifest).items()} == {s: sorted(p) for s, p in deal(turned).items()}
    assert deal(manifest) != deal(manifest, seed=1)


def test_skew_falls_as_alpha_rises() -> None:
    def largest(alpha: float) -> float:
        shares = []
        for seed in range(10):
            counts = partition(three(), sites=4, alpha=alpha, seed=seed, name="s", least=1).counts.values()
            shares += [max(c[label] for c in counts) / 100 for label in LABELS]
        return float(np.mean(shares))

    found = [largest(alpha) for alpha in (0.1, 1.0, 1000.0)]
    assert found[0] > 0.7
    assert found[0] > found[1] > found[2]
    assert found[2] < 0.3


def test_shares_have_the_moments_of_the_dirichlet_distribution() -> None:
    """Mean 1 / K, variance (K - 1) / (K² (K α + 1)): 0.0375 for K = 4, α = 1."""
    one = np.ones(200, dtype=np.int64)
    shares = [float((_deal(["lymphocyte"] * 200, one, 4, 1.0, s, 0) == 0).mean()) for s in range(400)]
    assert np.mean(shares) == pytest.approx(0.25, abs=0.03)
    assert np.var(shares) == pytest.approx(0.0375, rel=0.2)


def test_patients_slides_and_copies_stay_together() -> None:
    n = 120
    patients = [f"p{i // 6}" if i < 60 else None for i in range(n)]
    slides = [f"s{i // 5}" if 60 <= i < 90 else None for i in range(n)]
    digests = [f"{i // 2 if i >= 90 else i:064x}" for i in range(n)]
    manifest = make(n, [LABELS[i % 3] for i in range(n)], patient=patients, slide=slides, sha256=digests)
    where = {path: site for site, paths in deal(manifest, least=5).items() for path in paths}
    for keys in (patients, slides, digests):
        for key in set(keys) - {None}:
            assert len({where[f"{i:04d}.png"] for i in range(n) if keys[i] == key}) == 1


def test_classes_join_finer_labels_and_the_rest_is_counted() -> None:
    manifest = make(90, [[*LABELS, "erythroblast", None][i % 5] for i in range(90)])
    found = partition(manifest, sites=2, alpha=5.0, seed=0, name="s", classes=["neutrophil", "lymphocyte", "monocyte"])
    assert sum(found.counts.values(), Counter()) == {"neutrophil": 18, "lymphocyte": 18, "monocyte": 18}
    assert found.left_out == {"erythroblast": 18, "own": 18}


def test_too_few_images_are_refused_with_a_remedy() -> None:
    with pytest.raises(DataError, match="fewer than 10 of the 30 images.*--least"):
        deal(three(30))
    with pytest.raises(DataError, match="None of the manifest's images has a class"):
        deal(make(3, [None] * 3))


def test_the_command_writes_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "barcelona.csv"
    three().write(source)
    keys = {"sites": 3, "dirichlet": 0.5, "out": tmp_path / "dealt"}
    assert command(source, **keys) == 0  # type: ignore[arg-type]
    said = capsys.readouterr().out
    written = [Manifest.read(tmp_path / "dealt" / f"barcelona-{k}.csv") for k in (1, 2, 3)]
    assert sum(len(m) for m in written) == 300
    for k, manifest in enumerate(written, 1):
        counts = Counter(manifest.frame["label"])
        row = next(line.split() for line in said.splitlines() if line.startswith(f"barcelona-{k} "))
        assert row[1:] == [str(len(manifest)), *(str(counts[label]) for label in sorted(LABELS))]
        assert {f.name for f in manifest.files()} <= {f"{i:04d}.png" for i in range(300)}
    with pytest.raises(DataError, match="exists"):
        command(source, **keys)  # type: ignore[arg-type]
    assert command(source, force=True, **keys) == 0  # type: ignore[arg-type]
    for wrong in ({"sites": 1}, {"dirichlet": 0.0}, {"least": 0}):
        with pytest.raises(ConfigError, match=f"--{next(iter(wrong))}"):
            command(source, **{**keys, **wrong})  # type: ignore[arg-type]
