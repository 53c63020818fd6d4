"""The image store: nothing is decoded twice, and nothing damaged is used."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from morphfed.core.errors import StorageError
from morphfed.core.files import sha256_file
from morphfed.data import cache
from morphfed.data.cache import ImageStore, Picture, cut


def _picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Picture:
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return Picture(path, sha256_file(path))


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    return [_picture(tmp_path / f"{i}.png", i) for i in range(7)]


def test_second_run_decodes_nothing(pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ImageStore(tmp_path / "c", size=16)
    notes = first.ensure(pictures)
    assert (notes.decoded, notes.reused) == (7, 0)
    monkeypatch.setattr(cache, "cut_bytes", lambda *a, **k: pytest.fail("decoded again"))
    again = ImageStore(tmp_path / "c", size=16)
    notes = again.ensure(pictures)
    assert (notes.decoded, notes.reused) == (0, 7)
    np.testing.assert_array_equal(first.gather(first.rows(pictures)), again.gather(again.rows(pictures)))


def test_gather_hands_out_what_cut_made_in_any_order_over_segments(
    pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SEGMENT_BYTES", 2 * 16 * 16 * 3)  # two pictures a segment
    store = ImageStore(tmp_path / "c", size=16)
    store.ensure(pictures)
    assert len(list(store.folder.glob("*.u8"))) == 4
    order = [pictures[i] for i in (6, 0, 3, 3, 5)]
    expected = np.stack([cut(p.path, size=16, crop_px=None) for p in order])
    np.testing.assert_array_equal(store.gather(store.rows(order)), expected)


@pytest.mark.parametrize("damage", ["flip", "truncate", "no data", "bad index", "empty index"])
def test_damage_is_noticed_and_rebuilt(damage: str, pictures: list[Picture], tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "c", size=16)
    store.ensure(pictures)
    expected = store.gather(store.rows(pictures))
    data, index = next(store.folder.glob("*.u8")), next(store.folder.glob("*.json"))
    content = bytearray(data.read_bytes())
    if damage == "flip":
        content[100] ^= 1
        data.write_bytes(content)
    elif damage == "truncate":
        data.write_bytes(content[:-5])
    elif damage == "no data":
        data.unlink()
    else:
        index.write_text("{" if damage == "bad index" else "")
    again = ImageStore(tmp_path / "c", size=16)
    notes = again.ensure(pictures)
    assert notes.rebuilt >= 1
    assert notes.decoded == 7
    np.testing.assert_array_equal(again.gather(again.rows(pictures)), expected)


def test_same_content_is_stored_once_and_another_crop_apart(tmp_path: Path) -> None:
    one = _picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    two = Picture(tmp_path / "b.png", one.sha256)
    store = ImageStore(tmp_path / "c", size=16)
    assert store.ensure([one, two]).decoded == 1
    assert store.rows([one])[0] == store.rows([two])[0]
    assert store.ensure([Picture(one.path, one.sha256, crop_px=20)]).decoded == 1


def test_unreadable_files_are_named_and_the_rest_is_stored(pictures: list[Picture], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("not an image")
    store = ImageStore(tmp_path / "c", size=16)
    notes = store.ensure([*pictures, Picture(bad, sha256_file(bad))])
    assert notes.decoded == 7
    assert list(notes.failed) == [str(bad)]
    assert "bad.jpg" in notes.failed[str(bad)]


def test_a_file_that_changed_since_the_manifest_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    picture = _picture(tmp_path / "a.png", seed=0)
    _picture(tmp_path / "a.png", seed=1)
    notes = ImageStore(tmp_path / "c", size=16).ensure([picture])
    assert notes.decoded == 0
    assert "has changed since the manifest was made" in notes.failed[str(picture.path)]


def test_a_full_disk_says_so_and_leaves_no_half_segment(
    pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = ImageStore(tmp_path / "c", size=16)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(StorageError, match="disk is full"):
            store.ensure(pictures)
    assert ImageStore(tmp_path / "c", size=16).keys() == frozenset()
    assert ImageStore(tmp_path / "c", size=16).ensure(pictures).decoded == 7


def test_a_segment_without_its_commit_is_ignored(pictures: list[Picture], tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "c", size=16)
    store.ensure(pictures)
    next(store.folder.glob("*.json")).unlink()
    assert ImageStore(tmp_path / "c", size=16).ensure(pictures).decoded == 7


class TestCut:
    def test_keeps_the_centre(self, tmp_path: Path) -> None:
        pixels = np.zeros((60, 90, 3), dtype=np.uint8)
        pixels[20:40, 35:55] = 200  # a square of 20 in the middle
        Image.fromarray(pixels).save(tmp_path / "x.png")
        assert (cut(tmp_path / "x.png", size=20, crop_px=20) == 200).all()
        half = cut(tmp_path / "x.png", size=40, crop_px=40)
        assert half[20, 20].tolist() == [200] * 3
        assert half[2, 2].tolist() == [0] * 3

    def test_pad_edge_keeps_the_scale_and_none_keeps_the_picture(self, tmp_path: Path) -> None:
        pixels = np.full((40, 40, 3), 50, dtype=np.uint8)
        pixels[10:30, 10:30] = 250
        Image.fromarray(pixels).save(tmp_path / "x.png")

        def side(**kind: str) -> int:
            return int((cut(tmp_path / "x.png", size=40, crop_px=80, **kind)[20, :, 0] > 150).sum())  # type: ignore[arg-type]

        assert side(pad="edge") == 10  # 20 of 80 pixels, on 40
        assert side(pad="none") == 20

    @pytest.mark.parametrize("size", [(61, 60), (60, 61), (33, 90)])
    def test_odd_sizes(self, size: tuple[int, int], tmp_path: Path) -> None:
        picture = _picture(tmp_path / "x.jpg", size=size)
        for crop in (None, 20, 500):
            for pad in ("edge", "none"):
                assert cut(picture.path, size=24, crop_px=crop, pad=pad).shape == (24, 24, 3)  # type: ignore[arg-type]

    def test_reduced_size_decoding_changes_little(self, tmp_path: Path) -> None:
        ramp = np.linspace(0, 255, 400)[None, :, None] * np.ones((400, 1, 3))
        Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "x.jpg", quality=95)
        found = cut(tmp_path / "x.jpg", size=48, crop_px=None).astype(float)
        expected = np.asarray(Image.open(tmp_path / "x.jpg").resize((48, 48), Image.Resampling.BICUBIC), dtype=float)
        assert np.abs(found - expected).max() <= 3
