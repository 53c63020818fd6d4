"""Prostate volumes become axial slices of 8 bits with masks: turned, normalised, and every fault named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from morphfed.cli.data import unpack as command
from morphfed.core.errors import DataError, MissingExtraError
from morphfed.data.drafting import draft
from morphfed.data.unpack import unpack
from morphfed.data.volumes import axial, normalised, read_volume

SPACING = (0.5, 0.5, 3.0)


def save(path: Path, values: np.ndarray[Any, Any], affine: np.ndarray[Any, Any] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([*SPACING, 1.0]) if affine is None else affine), path)  # type: ignore[no-untyped-call, attr-defined]


def gland(shape: tuple[int, ...] = (12, 10, 4), seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A volume and a mask whose first slice holds nothing."""
    volume = np.random.default_rng(seed).normal(300, 60, shape).astype(np.float32)
    mask = np.zeros(shape, np.uint8)
    mask[3:7, 2:8, 1:] = 1
    return volume, mask


def site(root: Path, *cases: int) -> Path:
    for case in cases:
        volume, mask = gland(seed=case)
        save(root / f"Case{case:02d}.nii.gz", volume)
        name = "Segmentation" if case % 2 else "segmentation"
        save(root / f"Case{case:02d}_{name}.nii.gz", mask)
    return root


def test_normalised_is_the_standard_score_of_the_clipped_volume() -> None:
    values = np.random.default_rng(1).gamma(2.0, 100.0, (20, 20, 10))
    grey, odd = normalised(values)
    low, high = np.percentile(values, 0.5), np.percentile(values, 99.5)
    clipped = np.minimum(np.maximum(values, low), high)
    z = (clipped - clipped.mean()) / clipped.std()
    expected = np.floor(127.5 + 31.875 * np.minimum(np.maximum(z, -4), 4) + 0.5)
    assert odd == 0
    assert np.abs(grey.astype(int) - expected).max() <= 1  # a half may round either way
    assert (grey == expected).mean() > 0.999


def test_normalised_forgets_unit_and_offset() -> None:
    values = np.random.default_rng(2).normal(0, 1, (16, 16, 8))
    a, b = normalised(values)[0], normalised(7.5 * values + 900)[0]
    assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
    assert a.mean() == pytest.approx(127.5, abs=1)
    assert a.std() == pytest.approx(31.875, rel=0.02)


def test_voxels_that_are_not_finite_are_black_and_change_nothing_else() -> None:
    values = np.random.default_rng(3).normal(100, 10, (10, 10, 5))
    holed = values.copy()
    holed[0, 0, 0], holed[1, 1, 1] = np.nan, np.inf
    grey, odd = normalised(holed)
    assert odd == 2
    assert grey[0, 0, 0] == grey[1, 1, 1] == 0
    assert np.abs(grey.astype(int) - normalised(values)[0])[2:].max() <= 1


@pytest.mark.parametrize("values", [np.full((4, 4, 2), 7.0), np.full((4, 4, 2), np.nan)])
def test_a_volume_without_contrast_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match=r"one value|no voxel is finite"):
        normalised(values)


def test_every_stored_orientation_gives_the_same_slices(tmp_path: Path) -> None:
    """The oracle: voxels are placed by their millimetres, and the slice is read off by hand."""
    volume, _ = gland((6, 5, 4))
    ras = np.diag([0.5, 0.6, 3.0, 1.0])
    save(tmp_path / "ras.nii.gz", volume, ras)
    expected = read_volume(tmp_path / "ras.nii.gz")
    np.testing.assert_array_equal(expected.values, volume)
    np.testing.assert_allclose(expected.spacing_mm, (0.5, 0.6, 3.0), rtol=1e-6)
    # Front of the body (large y) is the upper row, the right side (large x) the left column.
    picture = axial(expected.values, 2)
    assert picture.shape == (5, 6)
    assert picture[0, 0] == volume[5, 4, 2]
    assert picture[4, 5] == volume[0, 0, 2]
    # The same body, stored left-posterior-superior with its axes permuted to (z, x, y).
    stored = volume[::-1, ::-1].transpose(2, 0, 1)
    affine = np.array([[0, -0.5, 0, 2.5], [0, 0, -0.6, 2.4], [3.0, 0, 0, 0], [0, 0, 0, 1]])
    save(tmp_path / "lps.nii.gz", stored, affine)
    turned = read_volume(tmp_path / "lps.nii.gz")
    np.testing.assert_array_equal(turned.values, volume)
    np.testing.assert_allclose(turned.spacing_mm, (0.5, 0.6, 3.0), rtol=1e-6)


def test_a_mask_with_a_lost_header_lies_on_its_volume(tmp_path: Path) -> None:
    volume, mask = gland()
    flipped = np.diag([-0.5, -0.5, 3.0, 1.0])
    save(tmp_path / "s" / "Case00.nii.gz", volume, flipped)
    save(tmp_path / "s" / "Case00_segmentation.nii.gz", mask, np.eye(4))
    unpack("saml_prostate", tmp_path / "s", tmp_path / "out")
    drawn = np.asarray(Image.open(tmp_path / "out" / "masks" / "Case00_001.png"))
    seen = np.asarray(Image.open(tmp_path / "out" / "prostate" / "Case00_001.png"))
    # Voxel (i, j) of the file is at −x, −y: reversed twice, once for the header and once for the view.
    np.testing.assert_array_equal(drawn, 255 * mask[:, :, 1].T)
    np.testing.assert_array_equal(seen, normalised(volume)[0][:, :, 1].T)


def test_a_site_becomes_slices_with_masks_patients_and_scale(tmp_path: Path) -> None:
    folder = site(tmp_path / "BIDMC", 0, 1)
    done = unpack("saml_prostate", folder, tmp_path / "out")
    assert done.labels == {"prostate": 6}
    assert done.skipped == {"slice without prostate": 2}
    assert done.remarks == []
    table = pd.read_csv(done.table)
    assert list(table["patient"].unique()) == ["Case00", "Case01"]
    assert set(table["um_per_px"]) == {500.0}
    drafted = draft(tmp_path / "out", site="bidmc", masks=True)
    frame = drafted.manifest.frame
    assert set(frame["source"]) == {"saml_prostate"}
    assert list(frame["patient"].value_counts()) == [3, 3]
    assert set(zip(frame["width"], frame["height"], strict=True)) == {(12, 10)}
    assert frame["mask"].notna().all()
    for file in (drafted.manifest.file(m) for m in frame["mask"]):
        values = np.asarray(Image.open(file))
        assert set(np.unique(values)) == {0, 255}
        assert (values == 255).sum() == 4 * 6
    assert not [path for paths in drafted.skipped.values() for path in paths if path.parent.name == "masks"]


def test_all_slices_when_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = site(tmp_path / "UCL", 3)
    assert command("saml_prostate", folder, tmp_path / "out", all_slices=True) == 0
    assert "prostate: 3\n  no_prostate: 1" in capsys.readouterr().out
    empty = np.asarray(Image.open(tmp_path / "out" / "masks" / "Case03_000.png"))
    assert not empty.any()


def test_faults_are_named_and_the_rest_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = site(tmp_path / "HK", 0)
    volume, mask = gland()
    save(folder / "Case01.nii.gz", volume)  # no mask
    save(folder / "Case02_segmentation.nii.gz", mask)  # no volume
    save(folder / "Case03.nii.gz", volume)
    save(folder / "Case03_segmentation.nii.gz", mask[:, :, :3])
    save(folder / "Case04.nii.gz", volume)
    save(folder / "Case04_segmentation.nii.gz", 7 * mask)
    save(folder / "Case05.nii.gz", np.full_like(volume, 5))
    save(folder / "Case05_segmentation.nii.gz", mask)
    (folder / "Case06.nii.gz").write_bytes(b"not a volume")
    save(folder / "Case06_segmentation.nii.gz", mask)
    zones = mask.copy()
    zones[4:6, 3:5] *= 2
    holed = volume.copy()
    holed[0, 0, :2] = np.nan
    save(folder / "Case07.nii.gz", holed)
    save(folder / "Case07_segmentation.nii.gz", zones)
    save(folder / "Case08.nii.gz", volume[:, :, 1])
    save(folder / "Case08_segmentation.nii.gz", mask[:, :, 1])
    save(folder / "Case09.nii.gz", volume[..., None])
    save(folder / "Case09_segmentation.nii.gz", 0 * mask)
    save(folder / "Case10.nii.gz", np.stack([volume, volume], axis=-1))
    save(folder / "Case10_segmentation.nii.gz", mask)
    save(folder / "Case11.nii.gz", volume, np.diag([0.5, 0.8, 3.0, 1.0]))
    save(folder / "Case11_segmentation.nii.gz", mask)
    command("saml_prostate", folder, tmp_path / "out")
    printed = capsys.readouterr().out
    remarks = (tmp_path / "out" / "saml_prostate.notes.txt").read_text().splitlines()
    assert remarks[:5] == [
        "Case01.nii.gz has no mask and is left out",
        "Case02_segmentation.nii.gz has no volume and is left out",
        "left out: Case03_segmentation.nii.gz has 12×10×3 voxels, its volume 12×10×4.",
        "left out: Case04_segmentation.nii.gz holds 7; 0, 1 and 2 were expected.",
        "left out: Case05.nii.gz has no contrast: all voxels have one value.",
    ]
    assert remarks[5].startswith("left out: Case06.nii.gz cannot be read as NIfTI:")
    assert remarks[6:] == [
        "Case07.nii.gz: 2 voxels are not finite and are black",
        "Case08.nii.gz has one slice",
        "Case09_segmentation.nii.gz marks no prostate",
        "left out: Case10.nii.gz has 12×10×4×2 voxels; three dimensions were expected.",
        "Case11.nii.gz has voxels of 0.5 × 0.8 mm; their geometric mean is taken as the scale",
        "the zones of 1 glands are joined",
    ]
    assert [line.removeprefix("  note: ") for line in printed.splitlines() if line.startswith("  note: ")] == remarks
    drafted = draft(tmp_path / "out", site="hk", masks=True)
    assert set(remarks) <= set(drafted.guesses)
    assert set(drafted.manifest.frame["patient"]) == {"Case00", "Case07", "Case08", "Case11"}
    joined = np.asarray(Image.open(tmp_path / "out" / "masks" / "Case07_001.png"))
    assert (joined == 255).sum() == 24
    assert set(drafted.manifest.frame.query("patient == 'Case11'")["um_per_px"].round(3)) == {632.456}


def test_sites_stay_apart_and_a_site_without_prostate_is_refused(tmp_path: Path) -> None:
    for name in ("BIDMC", "ISBI_1.5"):
        site(tmp_path / "all" / name, 0)
    with pytest.raises(DataError, match=r"holds 2 sites: BIDMC, ISBI_1\.5"):
        unpack("saml_prostate", tmp_path / "all", tmp_path / "out")
    volume, mask = gland()
    save(tmp_path / "none" / "Case00.nii.gz", volume)
    save(tmp_path / "none" / "Case00_segmentation.nii.gz", 0 * mask)
    with pytest.raises(DataError, match=r"No mask of .*none marks prostate: 1 volumes and 1 masks"):
        unpack("saml_prostate", tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no NIfTI volume"):
        unpack("saml_prostate", tmp_path / "empty", tmp_path / "out")
    save(tmp_path / "none" / "sub" / "Case00.nii", volume)
    with pytest.raises(DataError, match="are both of case Case00"):
        unpack("saml_prostate", tmp_path / "none", tmp_path / "out")


def test_a_folder_of_volumes_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        draft(site(tmp_path / "UCL", 0), site="ucl")
    assert "morphfed data unpack saml_prostate" in raised.value.fix


def test_without_nibabel_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = site(tmp_path / "UCL", 0)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(MissingExtraError, match="nibabel"):
        unpack("saml_prostate", folder, tmp_path / "out")
