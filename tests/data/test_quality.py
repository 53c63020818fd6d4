"""The data check: every fault planted by hand is found with its count, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from morphfed.core.errors import ConfigError, DataError
from morphfed.core.files import sha256_file
from morphfed.core.progress import Event
from morphfed.core.seeding import numpy_stream
from morphfed.data.manifest import COLUMNS, Manifest
from morphfed.data.ontology import load_ontology
from morphfed.data.quality import CheckReport, Finding, check, colour_figure, render_text
from morphfed.data.quality.duplicates import NEAR_BITS, near_groups
from morphfed.data.synthetic import PRESETS, render_cell

CLASSES = ["neutrophil", "lymphocyte", "monocyte"]
SMALL = {name: PRESETS[name].model_copy(update={"image_px": 64, "um_per_px": 0.4}) for name in ("alder", "dogwood")}

Row = dict[str, Any]


def picture(site: str, label: str, number: int) -> NDArray[np.uint8]:
    return render_cell(label, SMALL[site], numpy_stream(0, site, label, number))


def row(root: Path, path: str, site: str, label: str, **more: Any) -> Row:
    file = root / path
    known = load_ontology().map(label, "common")
    digest = sha256_file(file) if file.is_file() else None
    return {
        **dict.fromkeys(COLUMNS),
        **{
            "path": path,
            "site": site,
            "source_label": label,
            "label": known,
            "sha256": digest,
            "source": "folders",
        },
        **more,
    }


@pytest.fixture(scope="session")
def clean_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    for site in SMALL:
        for label in CLASSES:
            (folder / site / label).mkdir(parents=True)
            for number in range(12):
                Image.fromarray(picture(site, label, number)).save(folder / site / label / f"{number:02d}.png")
    return folder


@pytest.fixture
def clean(clean_folder: Path, tmp_path: Path) -> tuple[Path, list[Row]]:
    """A fresh copy of 2 sites × 3 classes × 12 images, split by patient, and its rows."""
    rows = []
    for file in sorted(clean_folder.rglob("*.png")):
        relative = file.relative_to(clean_folder).as_posix()
        (tmp_path / relative).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / relative).write_bytes(file.read_bytes())
        site, label, name = relative.split("/")
        patient = int(name[:2]) % 4
        split = ("train", "train", "validation", "test")[patient]
        rows.append(row(tmp_path, relative, site, label, patient=f"{site}-{patient}", split=split))
    return tmp_path, rows


def checked(root: Path, rows: list[Row], **options: Any) -> CheckReport:
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *({"lesion"} & {key for row in rows for key in row})])
    return check(Manifest(frame, root), **{"classes": CLASSES, "jobs": 1, **options})


def only(report: CheckReport, code: str) -> Finding:
    found = [finding for finding in report.findings if finding.code == code]
    assert len(found) == 1, [f.code for f in report.findings]
    assert found[0].fix
    return found[0]


def codes(report: CheckReport) -> set[str]:
    return {finding.code for finding in report.findings}


def test_clean_data_is_ok(clean: tuple[Path, list[Row]]) -> None:
    events: list[Event] = []
    report = checked(*clean, report=events.append)
    assert report.findings == []
    assert (report.status, report.exit_code) == ("ok", 0)
    assert report.images == {"alder": 36, "dogwood": 36}
    assert (events[-1].task, events[-1].done, events[-1].total) == ("check", 72, 72)


def test_files_that_cannot_be_used(clean: tuple[Path, list[Row]]) -> None:
    root, rows = clean
    alder = root / "alder/neutrophil"
    (alder / "00.png").unlink()
    content = (alder / "01.png").read_bytes()
    (alder / "01.png").write_bytes(content[: len(content) // 2])
    (alder / "02.png").write_bytes(b"")
    (alder / "03.png").write_text("see attached")
    report = checked(root, rows)
    missing, unreadable = only(report, "missing-file"), only(report, "unreadable")
    assert (missing.count, missing.level, missing.site) == (1, "error", "alder")
    assert missing.examples == ["alder/neutrophil/00.png"]
    assert (unreadable.count, unreadable.level) == (3, "error")
    assert [e.split(":")[0][-6:] for e in unreadable.examples] == ["01.png", "02.png", "03.png"]
    assert "truncated" in unreadable.examples[0]
    assert "0 bytes" in unreadable.examples[1]
    assert "see attached" in unreadable.examples[2]
    assert only(report, "changed-file").count == 2  # an empty file has nothing to compare
    assert (report.status, report.exit_code) == ("errors", 3)


def test_modes_and_sizes(clean: tuple[Path, list[Row]]) -> None:
    root, rows = clean
    folder = root / "alder/monocyte"
    Image.open(folder / "00.png").convert("L").save(folder / "00.png")
    Image.open(folder / "01.png").convert("RGBA").save(folder / "01.png")
    Image.fromarray(np.asarray(Image.open(folder / "02.png").convert("L")).astype(np.uint16) * 257).save(
        folder / "02.png"
    )
    Image.open(folder / "03.png").resize((70, 66)).save(folder / "03.png")
    Image.open(folder / "04.png").resize((300, 100)).save(folder / "04.png")
    report = checked(root, rows)
    modes = only(report, "mixed-modes")
    assert (modes.count, modes.level) == (3, "warning")
    assert all(words in modes.message for words in ("grey to RGB: 1", "RGBA to RGB: 1", "16-bit grey to 8-bit RGB: 1"))
    assert only(report, "grey").count == 2
    assert only(report, "mixed-sizes").count == 2
    assert only(report, "odd-size").examples == ["alder/monocyte/04.png (300×100)"]


def test_sizes_of_crops_are_a_note(clean: tuple[Path, list[Row]]) -> None:
    root, rows = clean
    for number, file in enumerate(sorted((root / "alder").rglob("*.png"))):
        image = Image.open(file)
        image.crop((0, 0, 50 + number % 14, 64)).save(file)
    report = checked(root, [row(root, r["path"], r["site"], r["source_label"]) for r in rows])
    assert only(report, "varying-sizes").level == "info"
    assert "50×64 to 63×64" in only(report, "varying-sizes").message
    assert report.status == "ok"


def test_labels(clean: tuple[Path, list[Row]]) -> None:
    root, rows = clean
    for index in (0, 1):
        rows[index] |= {"source_label": "neutrofil", "label": None}
    rows[2] |= {"source_label": "zzz", "label": None}
    rows[3] |= {"source_label": "platelet", "label": "platelet"}
    rows[4] |= {"source_label": "band", "label": "neutrophil_banded"}
    report = checked(root, rows)
    unknown = only(report, "unknown-label")
    assert (unknown.count, unknown.level) == (3, "warning")
    assert unknown.examples == ["'neutrofil' (2 images): did you mean 'neutrophil'?", "'zzz' (1 images)"]
    outside = only(report, "outside-classes")
    assert (outside.count, outside.level, outside.examples) == (1, "info", ["platelet: 1"])
    few = only(report, "small-class")  # of 12 lymphocytes, four were relabelled to something else, one to a band
    assert few.examples == ["lymphocyte: 7"]
    assert (report.status, report.exit_code) == ("warnings", 1)
    assert "small-class" not in codes(checked(root, rows, min_per_class=7))


def test_sites_with_too_little(clean: tuple[Path, list[Row]]) -> None:
    root, rows = clean
    one_class = [r for r in rows if r["site"] == "alder" or r["source_label"] == "monocyte"]
    report = checked(root, one_class, sites=["alder", "dogwood", "elsewhere"])
    one = only(report, "one-class")
    assert (one.site, one.count) == ("dogwood", 12)
    assert only(report, "absent-class").examples == ["neutrophil", "lymphocyte"]
    empty = only(report, "empty-site")
    assert (empty.site, empty.count, empty.level) == ("elsewhere", 0, "error")
    for r in rows:
        if r["site"] == "dogwood":
            r["label"] = "platelet"
    assert only(checked(root, rows), "empty-site").count == 36


COPIES: list[tuple[str, dict[str, Any], str, str]] = [
    ("alder/neutrophil/copy.png", {"split": "train"}, "duplicate", "warning"),
    ("alder/neutrophil/copy.png", {"split": "test"}, "duplicate-across-splits", "error"),
    ("alder/monocyte/copy.png", {"split": "train"}, "duplicate-two-labels", "error"),
    ("dogwood/neutrophil/copy.png", {"split": "train"}, "duplicate-across-sites", "error"),
]


@pytest.mark.parametrize(("path", "more", "code", "level"), COPIES)
def test_exact_duplicates(
    clean: tuple[Path, list[Row]], path: str, more: dict[str, Any], code: str, level: str
) -> None:
    root, rows = clean
    (root / path).write_bytes((root / "alder/neutrophil/00.png").read_bytes())
    site, label, _ = path.split("/")
    found = only(checked(root, [*rows, row(root, path, site, label, **more)]), code)
    assert (found.count, found.level) == (1, level)
    assert found.examples == [f"alder/neutrophil/00.png = {path}"]
    assert found.site == (None if code.endswith("sites") else "alder")


def _resaved(image: Image.Image, path: Path) -> None:
    image.save(path.with_suffix(".jpg"), quality=70)


def _shifted(image: Image.Image, path: Path) -> None:
    image.resize((66, 66), Image.Resampling.BICUBIC).crop((1, 1, 65, 65)).save(path.with_suffix(".jpg"), quality=90)


def _brighter(image: Image.Image, path: Path) -> None:
    image.point(lambda v: min(255, int(1.08 * v + 4))).save(path.with_suffix(".jpg"), quality=90)


@pytest.mark.parametrize("change", [_resaved, _shifted, _brighter])
def test_near_duplicates(clean: tuple[Path, list[Row]], change: Callable[[Image.Image, Path], None]) -> None:
    root, rows = clean
    change(Image.open(root / "alder/neutrophil/03.png"), root / "dogwood/neutrophil/again.png")
    report = checked(root, [*rows, row(root, "dogwood/neutrophil/again.jpg", "dogwood", "neutrophil", split="train")])
    found = only(report, "near-duplicate-across-sites")
    assert (found.count, found.level) == (1, "warning")
    assert found.examples == ["alder/neutrophil/03.png = dogwood/neutrophil/again.jpg"]


def test_near_groups_against_brute_force() -> None:
    rng = np.random.default_rng(1)
    base = rng.random((700, 256)) < 0.5
    for copy, source, flips in ((10, 3, 30), (600, 3, 12), (699, 520, NEAR_BITS), (50, 51, NEAR_BITS + 1)):
        base[copy] = base[source]
        base[copy, rng.choice(256, flips, replace=False)] ^= True
    distance = (base[:, None, :] ^ base[None, :, :]).sum(axis=2)
    assert (distance[50, 51], distance[520, 699]) == (NEAR_BITS + 1, NEAR_BITS)
    assert near_groups(base) == [[3, 10, 600], [520, 699]]


def test_a_crowd_of_lookalikes_is_no_crowd_of_copies() -> None:
    rng = np.random.default_rng(2)
    alike = np.tile(rng.random(256) < 0.5, (40, 1)) ^ (rng.random((40, 256)) < 0.09)  # about 42 bits apart
    assert np.median((alike[:1] ^ alike[1:]).sum(axis=1)) <= NEAR_BITS
    assert near_groups(alike) == []
    alike[7] = alike[5]
    alike[7, :10] ^= True
    assert near_groups(alike) == [[5, 7]]


def test_patient_in_two_splits(clean: tuple[Path, list[Row]]) -> None:
    root, rows = clean
    next(r for r in rows if r["patient"] == "alder-0")["split"] = "test"
    found = only(checked(root, rows), "patient-across-splits")
    assert (found.count, found.level, found.site) == (1, "error", "alder")
    assert found.examples == ["alder-0: test, train"]


def test_lesion_in_two_splits_and_at_two_sites(clean: tuple[Path, list[Row]]) -> None:
    root, rows = clean
    for r in rows:
        r["lesion"], r["patient"] = f"{r['patient']}-lesion", None
    assert not [f for f in checked(root, rows).findings if f.code.startswith("lesion-")]
    next(r for r in rows if r["lesion"] == "alder-0-lesion")["split"] = "test"
    found = only(checked(root, rows), "lesion-across-splits")
    assert (found.count, found.level, found.site) == (1, "error", "alder")
    assert found.examples == ["alder-0-lesion: test, train"]
    next(r for r in rows if r["lesion"] == "dogwood-1-lesion")["lesion"] = "alder-1-lesion"
    across = only(checked(root, rows), "lesion-across-sites")
    assert (across.count, across.level, across.site) == (1, "warning", None)
    assert across.examples == ["alder-1-lesion: alder, dogwood"]


def test_looks(clean: tuple[Path, list[Row]]) -> None:
    root, rows = clean
    folder = root / "alder/lymphocyte"
    (Image.open(folder / "00.png").point(lambda v: v // 5)).save(folder / "00.png")
    Image.new("RGB", (64, 64), (250, 250, 250)).save(folder / "01.png")
    Image.open(folder / "02.png").filter(ImageFilter.GaussianBlur(4)).save(folder / "02.png")
    red, green, blue = Image.open(folder / "03.png").split()
    Image.merge("RGB", (red.point(lambda v: int(0.8 * v)), green, blue)).save(folder / "03.png")
    report = checked(root, rows)
    assert only(report, "dark").examples == ["alder/lymphocyte/00.png"]
    assert only(report, "light").examples == ["alder/lymphocyte/01.png"]
    assert only(report, "low-information").examples == ["alder/lymphocyte/01.png"]
    assert "alder/lymphocyte/02.png" in only(report, "out-of-focus").examples
    assert "alder/lymphocyte/03.png" in only(report, "colour-outlier").examples
    assert "dogwood" not in {finding.site for finding in report.findings}


def test_colour_statistics_against_numpy(clean: tuple[Path, list[Row]]) -> None:
    root, rows = clean
    report = checked(root, rows)
    pixels = np.array([np.asarray(Image.open(root / r["path"])) for r in rows if r["site"] == "alder"]) / 255
    colour = report.colour["alder"]
    assert colour.n == 36
    assert np.allclose(colour.mean, pixels.mean(axis=(0, 1, 2)), atol=1e-4)
    assert np.allclose(colour.sd, pixels.std(axis=(0, 1, 2)), atol=1e-4)
    assert np.allclose(colour.between, pixels.mean(axis=(1, 2)).std(axis=0), atol=1e-4)
    assert (np.diff(colour.palette.mean(axis=1)) > 0).all()


def test_colour_figure(clean: tuple[Path, list[Row]], tmp_path: Path) -> None:
    report = checked(*clean)
    for suffix in ("png", "svg"):
        assert colour_figure(report, tmp_path / f"colours.{suffix}").stat().st_size > 10_000
    assert Image.open(tmp_path / "colours.png").width > 1000
    assert "alder" in (tmp_path / "colours.svg").read_text() or "glyph" in (tmp_path / "colours.svg").read_text()
    with pytest.raises(DataError, match=r"colours\.gif"):
        colour_figure(report, tmp_path / "colours.gif")
    with pytest.raises(DataError, match="No site"):
        colour_figure(CheckReport([], {}), tmp_path / "none.png")


def test_json_and_text(clean: tuple[Path, list[Row]]) -> None:
    root, rows = clean
    (root / "alder/neutrophil/00.png").unlink()
    rows[1]["label"], rows[1]["source_label"] = None, "[odd] label"
    report = checked(root, rows)
    back = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert back["status"] == "errors"
    assert back["findings"][0]["code"] == "missing-file"
    assert set(back["findings"][0]) == {"code", "level", "site", "count", "message", "examples", "fix"}
    assert len(back["colour"]["dogwood"]["palette"]) == 5
    text = render_text(report, width=100)
    for words in (
        "ERROR",
        "alder/neutrophil/00.png",
        "fix: mount or restore",
        "'[odd] label'",
        "1 error, 1 warning",
    ):
        assert words in text
    assert "\x1b" not in text
    assert "\x1b" in render_text(report, colour=True)


def test_worst_first_and_few_examples(clean: tuple[Path, list[Row]]) -> None:
    root, rows = clean
    for file in (root / "dogwood/monocyte").iterdir():
        file.unlink()
    report = checked(root, rows)
    found = only(report, "missing-file")
    assert (found.count, len(found.examples)) == (12, 5)
    order = [finding.level for finding in report.findings]
    assert order == sorted(order, key=["error", "warning", "info"].index)


def test_wrong_classes_are_refused_before_reading(clean: tuple[Path, list[Row]]) -> None:
    events: list[Event] = []
    with pytest.raises(ConfigError, match="Did you mean 'monocyte'"):
        checked(*clean, classes=["monocite", "lymphocyte"], report=events.append)
    assert events == []


def test_empty_manifest(tmp_path: Path) -> None:
    report = checked(tmp_path, [], sites=["alder"])
    assert codes(report) == {"empty-site"}


def test_nothing_on_stdout(clean: tuple[Path, list[Row]], capfd: pytest.CaptureFixture[str]) -> None:
    checked(*clean)
    assert capfd.readouterr() == ("", "")


@pytest.mark.shared
def test_known_faults_of_real_cells(shared_data: Path) -> None:
    """What a look at the images and SOURCE.md says, of one laboratory each."""
    cells = shared_data / "cells"
    rows = [
        row(cells, f.relative_to(cells).as_posix(), "barcelona", f.parent.name)
        for prefix in ("NEUTROPHIL", "SNE", "BNE")
        for f in sorted((cells / "PBC_dataset_normal_DIB/neutrophil").glob(f"{prefix}_*.jpg"))
    ]
    rows += [
        row(cells, f.relative_to(cells).as_posix(), "bccd", f.parent.name)
        for f in sorted((cells / "bccd_crops").glob("*/*.jpg"))
    ]
    found = {(f.site, f.code): f for f in checked(cells, rows, classes=["neutrophil", "basophil"], jobs=2).findings}
    assert found["barcelona", "mixed-sizes"].count == 50  # the other acquisition: 50 NEUTROPHIL_ of 366×369
    assert found["barcelona", "colour-outlier"].count == 50
    assert ("barcelona", "near-duplicate") not in found
    assert found["bccd", "small-class"].examples == ["basophil: 3"]
    assert found["bccd", "near-duplicate"].count == 12
    assert not [f for f in found.values() if f.level == "error"]
