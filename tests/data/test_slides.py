"""From slides to tiles: scale, tissue, grid, files; what is wrong with a slide is named and stops no other."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.data.slides_for_tests import tissue_picture, write_aperio, write_slide

from morphfed.core.config import validate
from morphfed.core.errors import ConfigError, DataError

h5py = pytest.importorskip("h5py")
openslide = pytest.importorskip("openslide")
pytest.importorskip("imagecodecs")

from morphfed.data.slides.files import read_coords, read_features, write_coords, writing_features  # noqa: E402
from morphfed.data.slides.grid import Geometry, Tiling, geometry, grid, tissue_share  # noqa: E402
from morphfed.data.slides.reader import Slide  # noqa: E402
from morphfed.data.slides.tiles import Row, Tiled, tile_folder  # noqa: E402
from morphfed.data.slides.tissue import tissue_mask  # noqa: E402
from morphfed.data.synthetic.slides import CENTRES, draw_slide, write_pyramid  # noqa: E402
from morphfed.data.synthetic.tissue import GLASS  # noqa: E402

SMALL = Tiling(tile_px=64, um_per_px=2.0)


def by_name(done: Tiled) -> dict[str, Row]:
    return {row.slide: row for row in done.rows}


# Scale


def test_scale_from_the_tiff(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif", 0.9)
    with Slide(tmp_path / "a.tif") as slide:
        assert slide.scale.um_per_px == pytest.approx(0.9)
        assert slide.scale.origin == "file"
        assert slide.levels == ((1024, 1024), (512, 512))
        assert slide.name == "a"


def test_scale_from_words_and_from_the_objective(tmp_path: Path) -> None:
    write_aperio(tmp_path / "a.svs", "|AppMag = 40|MPP = 0.2525")
    write_aperio(tmp_path / "b.svs", "|AppMag = 40")
    write_aperio(tmp_path / "c.svs", "|AppMag = 20|MPP = 352.8")  # 72 dpi, which is the screen's
    scales = {}
    for name in "abc":
        with Slide(tmp_path / f"{name}.svs", um_per_px=1.0) as slide:
            scales[name] = (slide.scale.um_per_px, slide.scale.origin)
    assert scales == {"a": (0.2525, "file"), "b": (0.25, "objective power"), "c": (0.5, "objective power")}


def test_no_scale_is_an_error_unless_given(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif", None)
    with Slide(tmp_path / "a.tif") as slide, pytest.raises(DataError, match="does not say how many µm") as caught:
        _ = slide.scale
    assert "--slide-um-per-px" in caught.value.fix
    with Slide(tmp_path / "a.tif", um_per_px=0.5) as slide:
        assert (slide.scale.um_per_px, slide.scale.origin) == (0.5, "given")
    write_aperio(tmp_path / "b.svs", "|MPP = 352.8")
    with Slide(tmp_path / "b.svs") as slide, pytest.raises(DataError, match=r"352\.8 µm, which no scanner has"):
        _ = slide.scale


def test_the_real_slide(shared_data: Path) -> None:
    with Slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        assert slide.size == (2220, 2967)
        assert slide.scale.um_per_px == pytest.approx(0.499)
        assert slide.objective == 20


# Reading


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    pixels = write_slide(tmp_path / "a.tif").astype(float)
    with Slide(tmp_path / "a.tif") as slide:
        fine = slide.read(300, 200, 0, 128, 96)
        half = slide.read(300, 200, 1, 64, 48)
    assert fine.shape == (96, 128, 3)
    assert np.abs(fine - pixels[200:296, 300:428]).mean() < 3
    boxed = pixels[200:296, 300:428].reshape(48, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(half - boxed).mean() < 3


def test_beyond_the_edge_is_white(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif", box=(0, 0, 1024, 1024))
    with Slide(tmp_path / "a.tif") as slide:
        region = slide.read(1000, 1000, 0, 48, 48)
    assert region[30:, 30:].min() == 255
    assert region[:20, :20].max() < 255


@pytest.mark.parametrize("um", [1.0, 3.0, 8.0, 20.0])
def test_overview_is_the_mean_of_the_slide(tmp_path: Path, um: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_slide(tmp_path / "a.tif")
    monkeypatch.setattr("morphfed.data.slides.reader._STRIP_PIXELS", 100_000)  # many strips
    with Slide(tmp_path / "a.tif") as slide:
        picture = slide.overview(um)
    assert picture.shape[0] == round(1024 / um)
    expected = np.asarray(Image.fromarray(pixels).resize(picture.shape[1::-1], Image.Resampling.BOX))
    assert np.abs(picture.astype(float) - expected).mean() < 4


# Tissue


@pytest.mark.parametrize("centre", CENTRES)
@pytest.mark.parametrize("positive", [False, True])
def test_tissue_is_found_on_every_centres_slides(centre: str, positive: bool) -> None:
    rng = np.random.default_rng(5)
    pixels, regions = draw_slide("tumour", CENTRES[centre], rng, positive=positive, side_um=768)
    um = CENTRES[centre].um_per_px
    small = np.asarray(Image.fromarray(pixels).reduce(8))
    true = np.asarray(Image.fromarray((regions != GLASS).astype(np.uint8) * 255).reduce(8)) > 127
    found = tissue_mask(small, 8 * um)
    overlap = (found & true).sum() / (found | true).sum()
    assert overlap > 0.93


def test_bare_glass_a_dark_frame_and_dust_are_no_tissue() -> None:
    rng = np.random.default_rng(0)
    glass = np.clip(rng.normal((243, 243, 240), 3, (128, 160, 3)), 0, 255).astype(np.uint8)
    assert not tissue_mask(glass, 8.0).any()
    framed = glass.copy()
    framed[:20] = (4, 2, 9)  # its saturation is noise
    assert not tissue_mask(framed, 8.0).any()
    dusty = glass.copy()
    dusty[50:55, 50:55] = (190, 90, 150)  # 40 µm
    assert not tissue_mask(dusty, 8.0).any()
    assert not tissue_mask(np.zeros((64, 64, 3), np.uint8), 8.0).any()


def test_a_slide_full_of_tissue_is_all_tissue() -> None:
    picture = tissue_picture(256, box=(0, 0, 256, 256))
    assert tissue_mask(picture, 8.0).all()


def test_holes_are_filled_by_their_size() -> None:
    picture = tissue_picture(256, box=(20, 20, 236, 236)).copy()
    picture[60:66, 60:66] = 244  # 48 µm: filled
    picture[120:180, 120:180] = 244  # 480 µm: stays
    found = tissue_mask(picture, 8.0)
    assert found[60:66, 60:66].all()
    assert not found[130:170, 130:170].any()


# Grid


def test_grid_worked_by_hand() -> None:
    corners = grid((1000, 700), Geometry(level=0, read_px=256, side=256.0, step=200.0))
    assert sorted(set(corners[:, 0].tolist())) == [0, 200, 400, 600]  # 600 + 256 ≤ 1000; 800 + 256 > 1000
    assert sorted(set(corners[:, 1].tolist())) == [0, 200, 400]
    assert corners.shape == (12, 2)
    assert corners[1].tolist() == [200, 0]  # row by row
    # Steps that are no whole pixels do not add up their rounding.
    thirds = grid((1000, 100), Geometry(level=0, read_px=64, side=64.0, step=128 / 3))
    assert thirds[:4, 0].tolist() == [0, 43, 85, 128]
    assert grid((255, 900), Geometry(level=0, read_px=256, side=256.0, step=256.0)).shape == (0, 2)
    assert grid((256, 256), Geometry(level=0, read_px=256, side=256.0, step=256.0)).tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("own", "tiling", "level", "read_px", "side"),
    [
        (1.0, Tiling(tile_px=128, um_per_px=1.0), 0, 128, 128),
        (1.0, Tiling(tile_px=128, um_per_px=2.0), 1, 128, 256),
        (1.0, Tiling(tile_px=128, um_per_px=3.0), 1, 192, 384),  # from the finer level, and made smaller
        (0.9, Tiling(tile_px=128, um_per_px=1.0), 0, 142, 128 / 0.9),
        (1.05, Tiling(tile_px=128, um_per_px=1.0), 0, 122, 128 / 1.05),  # nearly: 20× scanners differ by some per cent
    ],
)
def test_tiles_have_their_size_in_um(
    tmp_path: Path, own: float, tiling: Tiling, level: int, read_px: int, side: float
) -> None:
    write_slide(tmp_path / "a.tif", own)
    with Slide(tmp_path / "a.tif") as slide:
        place = geometry(slide, tiling)
        assert (place.level, place.read_px, place.side) == (level, read_px, pytest.approx(side))
        seen = place.read_px * slide.downsamples[place.level] * own
    assert seen == pytest.approx(tiling.tile_px * tiling.um_per_px, rel=0.005)


def test_a_slide_coarser_than_the_tiles_is_refused(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif", 1.0)
    with Slide(tmp_path / "a.tif") as slide, pytest.raises(DataError, match="1 µm per pixel .* are to have 0.5"):
        geometry(slide, Tiling(um_per_px=0.5))


def test_tissue_share_counted_pixel_by_pixel() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((40, 60)) < 0.4
    corners = np.array([[0, 0], [80, 160], [400, 240], [440, 240]])
    shares = tissue_share(corners, mask, (480, 320), 80)  # 8 pixels a cell
    for (x, y), share in zip(corners // 8, shares, strict=True):
        assert share == pytest.approx(mask[y : y + 10, x : x + 10].mean())


def test_overlap_must_leave_a_step() -> None:
    with pytest.raises(ConfigError, match="overlap_px must be below tile_px = 64"):
        validate(Tiling, {"tile_px": 64, "overlap_px": 64}, where="here")


# Files


def test_coords_are_as_clam_reads_them(tmp_path: Path) -> None:
    """The steps of CLAM's own loader: level and size from the attributes, region by OpenSlide."""
    write_slide(tmp_path / "s" / "a.tif")
    done = tile_folder(tmp_path / "s", tmp_path / "t", Tiling(tile_px=64, um_per_px=2.0))
    assert by_name(done)["a"].status == "done"
    with h5py.File(tmp_path / "t" / "patches" / "a.h5") as file, Slide(tmp_path / "s" / "a.tif") as slide:
        data = file["coords"]
        assert data.shape == (by_name(done)["a"].tiles, 2)
        assert data.dtype.kind == "i"
        assert data.maxshape == (None, 2)
        level, size = data.attrs["patch_level"], data.attrs["patch_size"]
        wanted = {"downsample", "downsampled_level_dim", "level_dim", "name", "save_path", "patch_size_level0"}
        assert wanted <= set(data.attrs)
        coord = tuple(int(v) for v in data[3])
        clam = openslide.OpenSlide(tmp_path / "s" / "a.tif").read_region(coord, level, (size, size)).convert("RGB")
        assert np.array_equal(np.asarray(clam), slide.read(*coord, int(level), int(size), int(size)))
        assert data.attrs["level_dim"].tolist() == [512, 512]
        assert data.attrs["patch_size_level0"] == 128


def test_attributes_go_to_disk_and_back(tmp_path: Path) -> None:
    corners = np.array([[1, 2], [3, 4]])
    write_coords(tmp_path / "a.h5", corners, {"none": None, "table": {"a": 1}, "text": "x", "n": 3, "f": 0.5})
    back, attributes = read_coords(tmp_path / "a.h5")
    assert back.tolist() == corners.tolist()
    assert attributes == {"none": "None", "table": json.dumps({"a": 1}), "text": "x", "n": 3, "f": 0.5}
    write_coords(tmp_path / "b.h5", np.zeros((0, 2), np.int64), {})
    assert read_coords(tmp_path / "b.h5")[0].shape == (0, 2)


def test_features_appear_only_when_complete(tmp_path: Path) -> None:
    corners = np.array([[1, 2], [3, 4], [5, 6]])
    path = tmp_path / "a.h5"

    def killed() -> None:
        with writing_features(path, corners, 4, features={}, coords={}) as data:
            data[:2] = 1
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        killed()
    assert list(tmp_path.iterdir()) == []
    with writing_features(path, corners, 4, features={"encoder": "e"}, coords={"patch_level": 0}) as data:
        data[:] = np.arange(12).reshape(3, 4)
    features, attributes = read_features(path)
    assert features.dtype == np.float32
    assert features.tolist() == np.arange(12).reshape(3, 4).tolist()
    assert attributes == {"encoder": "e"}
    with h5py.File(path) as file:
        assert file["coords"].dtype == np.int32


@pytest.mark.parametrize("content", [b"", b"no hdf5", None])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.h5"
    if content is None:
        with h5py.File(path, "w") as file:
            file["other"] = [1]
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.h5 holds no tile coordinates"):
        read_coords(path)
    with pytest.raises(DataError, match=r"a\.h5 holds no features"):
        read_features(path)


# A folder


def test_only_tissue_is_cut_and_the_table_says_all(tmp_path: Path) -> None:
    write_slide(tmp_path / "s" / "deep" / "a.tif", box=(256, 128, 768, 896))
    done = tile_folder(tmp_path / "s", tmp_path / "t", Tiling(tile_px=64, um_per_px=1.0, min_tissue=0.9))
    corners, attributes = read_coords(tmp_path / "t" / "patches" / "a.h5")
    # The rectangle holds 8 × 12 tiles of 64 px; its rim is found to a pixel of the mask (8 µm).
    inside = (corners[:, 0] >= 248) & (corners[:, 0] < 768) & (corners[:, 1] >= 120) & (corners[:, 1] < 896)
    assert inside.all()
    assert 80 <= len(corners) <= 96
    assert attributes["tissue_mm2"] == pytest.approx(0.512 * 0.768, rel=0.1)
    (row,) = csv.DictReader((tmp_path / "t" / "slides.csv").open(encoding="utf-8"))
    assert (row["slide"], row["status"], int(row["tiles"])) == ("a", "done", len(corners))
    assert row["path"] == "deep/a.tif"
    picture = np.asarray(Image.open(tmp_path / "t" / "masks" / "a.png"))
    assert picture.shape == (1024, 1024, 3)
    assert (picture[[129, 130]] == (0, 158, 115)).all(axis=2).any()  # the outline at the rectangle's top
    assert done.counts == {"done": 1}


def test_what_is_wrong_is_named_and_the_others_are_cut(tmp_path: Path) -> None:
    slides = tmp_path / "s"
    write_slide(slides / "good.tif")
    whole = (slides / "good.tif").read_bytes()
    (slides / "cut.tif").write_bytes(whole[: len(whole) // 3])
    (slides / "empty.tif").write_bytes(b"")
    (slides / "text.svs").write_bytes(b"hello")
    Image.new("RGB", (300, 300)).save(slides / "plain.tif")
    write_pyramid(slides / "white.tif", np.full((1024, 1024, 3), 244, np.uint8), 1.0)
    write_slide(slides / "tiny.tif", side=64, box=(4, 4, 60, 60))
    write_slide(slides / "unknown.tif", None)
    write_slide(slides / "coarse.tif", 4.0)
    write_slide(slides / "x" / "twice.tif")
    write_slide(slides / "y" / "twice.tiff")
    (slides / "notes.txt").write_text("x")
    done = tile_folder(slides, tmp_path / "t", SMALL)
    rows = by_name(done)
    assert done.counts == {"done": 1, "no tiles": 2, "failed": 7}
    assert rows["good"].tiles > 20
    assert rows["white"].reason == "no tissue found"
    assert rows["tiny"].reason == "smaller than one tile"
    for name, words in {
        "cut": "cut",
        "empty": "0 bytes",
        "text": "no format that OpenSlide reads",
        "plain": "no format that OpenSlide reads",
        "unknown": "does not say how many µm",
        "coarse": "4 µm per pixel",
        "twice": "x/twice.tif, y/twice.tiff",
    }.items():
        assert rows[name].status == "failed", name
        assert words in rows[name].reason, rows[name]
    assert done.ignored == {".txt": 1}
    written = {path.stem for path in (tmp_path / "t" / "patches").iterdir()}
    assert written == {"good", "white", "tiny"}
    assert (tmp_path / "t" / "masks" / "white.png").exists()
    # Given what was missing, the rest of the same command's work is kept.
    table = list(csv.DictReader((tmp_path / "t" / "slides.csv").open(encoding="utf-8")))
    assert [row["slide"] for row in table] == sorted(rows)


def test_an_earlier_run_is_continued(tmp_path: Path) -> None:
    slides, out = tmp_path / "s", tmp_path / "t"
    write_slide(slides / "a.tif")
    tile_folder(slides, out, SMALL)
    before = (out / "patches" / "a.h5").stat().st_mtime_ns
    write_slide(slides / "b.tif", seed=1)
    done = by_name(tile_folder(slides, out, SMALL))
    assert (done["a"].status, done["b"].status) == ("kept", "done")
    assert done["a"].tiles == done["b"].tiles
    assert (out / "patches" / "a.h5").stat().st_mtime_ns == before
    # A damaged file and another slide of the same name are done again.
    (out / "patches" / "a.h5").write_bytes(b"x")
    write_slide(slides / "b.tif", box=(0, 0, 512, 512))
    done = by_name(tile_folder(slides, out, SMALL))
    assert (done["a"].status, done["b"].status) == ("done", "done")
    with pytest.raises(ConfigError, match="tile_px 64 → 32"):
        tile_folder(slides, out, Tiling(tile_px=32, um_per_px=2.0))


def test_workers_change_nothing(tmp_path: Path) -> None:
    for name in "abc":
        write_slide(tmp_path / "s" / f"{name}.tif", seed=ord(name))
    for workers in (1, 3):
        tile_folder(tmp_path / "s", tmp_path / f"t{workers}", SMALL, workers=workers)
    for name in "abc":
        one, three = ((tmp_path / f"t{n}" / "patches" / f"{name}.h5").read_bytes() for n in (1, 3))
        assert one == three


def test_a_folder_without_slides(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="holds no slide .1 other files"):
        tile_folder(tmp_path, tmp_path / "t", SMALL)
    with pytest.raises(DataError, match="is no folder"):
        tile_folder(tmp_path / "nowhere", tmp_path / "t", SMALL)


def test_the_real_slide_is_cut(shared_data: Path, tmp_path: Path) -> None:
    done = tile_folder(shared_data / "slides", tmp_path, Tiling())
    row = by_name(done)["CMU-1-Small-Region"]
    assert row.status == "done"
    assert (row.um_per_px, row.level, row.read_px) == (pytest.approx(0.499), 0, 257)
    # Looked at: the tissue is a strip from the top to the bottom, about a third of the picture.
    assert 30 <= row.tiles <= 45
    assert row.tissue_mm2 == pytest.approx(0.54, abs=0.06)


def test_openslide_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from morphfed.core.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "openslide", None)
    arguments: Any = (tmp_path, tmp_path / "t", SMALL)
    with pytest.raises(MissingExtraError, match="OpenSlide") as caught:
        tile_folder(*arguments)
    assert "morphfed[slides]" in caught.value.fix
