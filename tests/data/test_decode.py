"""Every kind of file a site may bring, against Pillow's, NumPy's and the format's own rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from morphfed.core.errors import DataError
from morphfed.data.decode import MAX_PIXELS, decode, probe

RAMP = np.linspace(0, 255, 48 * 40 * 3).reshape(48, 40, 3).astype(np.uint8)  # height 48, width 40


def saved(path: Path, array: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_lossless_rgb_comes_back_unchanged(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", RAMP)
    assert np.array_equal(decode(path), RAMP)
    facts = probe(path)
    assert (facts.width, facts.height, facts.mode, facts.bits, facts.converted) == (40, 48, "RGB", 8, None)


def test_jpeg_equals_pillow(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", RAMP, quality=95)
    difference = np.abs(decode(path).astype(int) - np.asarray(Image.open(path)).astype(int))
    assert difference.max() <= 2  # two libjpeg builds may round differently


def test_reduced_jpeg_keeps_the_minimum_and_looks_the_same(tmp_path: Path) -> None:
    y, x = np.mgrid[:300, :400]
    smooth = np.stack([128 + 100 * np.sin(x / 40), 128 + 100 * np.cos(y / 50), 128 + 0 * x], -1).astype(np.uint8)
    path = saved(tmp_path / "a.jpg", smooth, quality=95)
    small = decode(path, min_side=100)
    assert 100 <= min(small.shape[:2]) < 300
    expected = np.asarray(Image.fromarray(smooth).resize(small.shape[1::-1], Image.Resampling.BOX)).astype(float)
    assert np.abs(small - expected).mean() < 3
    assert decode(path, min_side=5000).shape == (300, 400, 3)


def test_grey_is_replicated(tmp_path: Path) -> None:
    for suffix in ("png", "jpg"):
        path = saved(tmp_path / f"grey.{suffix}", RAMP[..., 0])
        image = decode(path)
        assert image.shape == (48, 40, 3)
        assert (image[..., 0] == image[..., 1]).all()
        assert (image[..., 0] == image[..., 2]).all()
        assert probe(path).converted == "grey to RGB"


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = (200, 0, 100, 255)
    rgba[2:] = (200, 0, 100, 0)
    path = saved(tmp_path / "a.png", rgba)
    image = decode(path)
    assert image[0, 0].tolist() == [200, 0, 100]
    assert image[3, 3].tolist() == [255, 255, 255]
    assert probe(path).converted == "RGBA to RGB"


def test_palette(tmp_path: Path) -> None:
    flat = np.zeros((8, 8, 3), np.uint8)
    flat[:4], flat[4:] = (10, 200, 30), (250, 0, 90)
    path = saved(tmp_path / "a.png", flat, mode="P")
    assert Image.open(path).mode == "P"
    assert np.abs(decode(path).astype(int) - np.asarray(Image.open(path).convert("RGB"))).max() == 0
    assert probe(path).converted == "palette to RGB"


def test_cmyk_jpeg(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (180, 90, 160), np.uint8)
    path = saved(tmp_path / "a.jpg", flat, mode="CMYK", quality=95)
    assert np.abs(decode(path).astype(int) - flat).max() <= 6
    assert probe(path).converted == "CMYK to RGB"


@pytest.mark.parametrize(("bits", "top"), [(10, 1023), (12, 4095), (14, 16383), (16, 65535)])
def test_deep_grey_is_scaled_by_its_bit_depth(tmp_path: Path, bits: int, top: int) -> None:
    grey = np.array([[0, top // 2], [top, top]], np.uint16)
    for suffix in ("png", "tif"):
        path = saved(tmp_path / f"{bits}.{suffix}", grey)
        assert decode(path)[..., 0].tolist() == [[0, 127], [255, 255]]
        assert probe(path).converted == "16-bit grey to 8-bit RGB"


def test_deep_rgb_tiff(tmp_path: Path) -> None:
    import tifffile

    deep = np.array([[[0, 2048, 4095], [4095, 1024, 0]]], np.uint16)
    path = tmp_path / "rgb.tif"
    tifffile.imwrite(path, deep, photometric="rgb")
    assert decode(path).tolist() == np.rint(deep * (255 / 4095)).astype(int).tolist()
    assert probe(path).converted == "16-bit RGB to 8-bit RGB"
    declared = tmp_path / "declared.tif"
    tifffile.imwrite(declared, deep, photometric="rgb", extratags=[(281, "H", 3, (65535,) * 3, True)])
    assert decode(declared).tolist() == np.rint(deep / 257).astype(int).tolist()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show after a quarter turn clockwise
    path = saved(tmp_path / "turned.png", RAMP, exif=exif)
    assert np.array_equal(decode(path), np.rot90(RAMP, k=-1))
    facts = probe(path)
    assert (facts.width, facts.height) == (48, 40)
    assert facts.converted == "EXIF orientation applied"


def test_first_frame_of_several(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    frames = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert np.array_equal(decode(path), RAMP)
    assert probe(path).converted == "first of 2 frames"


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    Image.fromarray(RAMP).save(path, format="PNG")
    assert np.array_equal(decode(path), RAMP)
    assert probe(path).format == "PNG"


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif"])
@pytest.mark.parametrize("kept", [0.6, 0.9])
def test_truncated(tmp_path: Path, suffix: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(tmp_path / f"cut.{suffix}", noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DataError, match=f"cut.{suffix}.*(truncated|damaged)"):
        decode(path)


def test_jpeg_with_a_hole(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(tmp_path / "hole.jpg", noise)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : -2] = b"\xff\xd9" * ((len(content) - 2 - len(content) // 2) // 2)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"hole\.jpg"):
        decode(path)


def test_extraneous_bytes_are_harmless(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", RAMP)
    whole, content = decode(path), path.read_bytes()
    path.write_bytes(content[:-2] + b"\x00\x00\x00" + content[-2:])
    assert np.array_equal(decode(path), whole)


def test_empty_text_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("Patient refused consent")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "junk.jpg").write_bytes(bytes(range(256)))
    for name, words in {
        "empty.jpg": "empty.jpg is empty",
        "text.jpg": "text.jpg is not an image: it holds text that begins with 'Patient",
        "page.jpg": "markup",
        "junk.jpg": "00 01 02 03",
        "absent.jpg": "absent.jpg does not exist",
    }.items():
        for read in (decode, probe):
            with pytest.raises(DataError, match=words) as caught:
                read(tmp_path / name)
            assert caught.value.fix
    with pytest.raises(DataError, match="cannot be read"):
        decode(tmp_path)


@pytest.mark.parametrize("side", [9_200, 20_000])  # above our limit; above Pillow's own
def test_decompression_bomb(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (side, side)).save(path)
    assert side * side > MAX_PIXELS
    assert path.stat().st_size < 200_000
    with pytest.raises(DataError, match="too large to decode whole"):
        decode(path)


@pytest.mark.shared
def test_real_files(shared_data: Path) -> None:
    jpeg = next((shared_data / "cells/PBC_dataset_normal_DIB").rglob("*.jpg"))
    bmp = next((shared_data / "cells/segmentation_WBC").rglob("*.bmp"))
    for path in (jpeg, bmp):
        facts, image = probe(path), decode(path)
        assert image.shape == (facts.height, facts.width, 3)
        assert np.abs(image.astype(int) - np.asarray(Image.open(path).convert("RGB"))).max() <= 2
