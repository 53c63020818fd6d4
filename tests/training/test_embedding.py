"""Features are what the encoder says of each tile; a run that was stopped goes on; what is wrong is named."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.slides_for_tests import write_slide

from morphfed.core.errors import ConfigError, DataError, ModelError
from morphfed.experiment.attention import thumbnail_of
from morphfed.models.encoder import Encoder, build_encoder
from morphfed.models.weights import save

h5py = pytest.importorskip("h5py")
pytest.importorskip("openslide")
pytest.importorskip("imagecodecs")

from morphfed.data.slides.files import read_coords, read_features  # noqa: E402
from morphfed.data.slides.grid import Tiling  # noqa: E402
from morphfed.data.slides.reader import Slide  # noqa: E402
from morphfed.data.slides.tiles import tile_folder  # noqa: E402
from morphfed.training.embedding import Embedder, embed_folder  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_encoder("resnet10t", "none", image_size=32)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides, cut; one has no tissue."""
    folder = tmp_path_factory.mktemp("slides")
    write_slide(folder / "s" / "a.tif", side=512, box=(64, 64, 448, 448))
    write_slide(folder / "s" / "b.tif", side=512, box=(100, 64, 448, 300), seed=1)
    write_slide(folder / "s" / "white.tif", side=512, box=(0, 0, 0, 0))
    tile_folder(folder / "s", folder / "t", Tiling(tile_px=48, um_per_px=1.0))
    return folder / "t"


def test_features_are_the_encoders_of_each_tile(tiles: Path, tmp_path: Path, encoder: Encoder) -> None:
    done = embed_folder(tiles, tmp_path, Embedder(encoder, CPU, batch_size=7))
    corners, attributes = read_coords(tiles / "patches" / "a.h5")
    found, about = read_features(tmp_path / "h5_files" / "a.h5")
    assert found.shape == (len(corners), encoder.width)
    expected = []
    with Slide(tiles.parent / "s" / "a.tif") as slide:
        for x, y in corners.tolist():
            tile = Image.fromarray(slide.read(x, y, 0, 48, 48)).resize((32, 32), Image.Resampling.BICUBIC)
            image = (np.asarray(tile) / 255 - np.array(encoder.mean)) / np.array(encoder.std)
            with torch.no_grad():
                expected.append(encoder.module(torch.tensor(image, dtype=torch.float32).permute(2, 0, 1)[None])[0])
    assert encoder.interpolation == "bicubic"
    np.testing.assert_allclose(found, torch.stack(expected).numpy(), rtol=1e-3, atol=1e-4)
    assert len(np.unique(found.round(3), axis=0)) > 1
    assert about["encoder"] == "resnet10t"
    assert about["encoder_weights"] == encoder.fingerprint
    back, place = read_coords(tmp_path / "h5_files" / "a.h5")
    assert back.tolist() == corners.tolist()
    assert all(np.array_equal(place[key], value) for key, value in attributes.items())
    rows = {row.slide: (row.status, row.tiles) for row in done.rows}
    assert rows == {"a": ("done", len(corners)), "b": rows["b"], "white": ("no tiles", 0)}
    assert read_features(tmp_path / "h5_files" / "white.h5")[0].shape == (0, encoder.width)
    table = list(csv.DictReader((tmp_path / "slides.csv").open(encoding="utf-8")))
    assert [row["slide"] for row in table] == ["a", "b", "white"]
    assert json.loads((tmp_path / "embedding.json").read_text())["features"] == encoder.width
    for slide in ("a", "b", "white"):  # beside the features, where reports look for them
        assert (tmp_path / "thumbnails" / f"{slide}.png").read_bytes() == (
            tiles / "thumbnails" / f"{slide}.png"
        ).read_bytes()
    with Slide(tiles.parent / "s" / "a.tif") as slide_a:
        shown = np.asarray(Image.open(tmp_path / "thumbnails" / "a.png"))
        np.testing.assert_array_equal(shown, slide_a.overview(slide_a.scale.um_per_px))
    thumbnail = thumbnail_of(tmp_path / "h5_files" / "a.h5")
    assert thumbnail is not None
    assert np.array_equal(thumbnail, shown)


def test_workers_and_batches_change_nothing_that_counts(tiles: Path, tmp_path: Path, encoder: Encoder) -> None:
    for name, options in (("one", {"batch_size": 64, "workers": 1}), ("many", {"batch_size": 5, "workers": 4})):
        embed_folder(tiles, tmp_path / name, Embedder(encoder, CPU, **options))  # type: ignore[arg-type]
    one, many = (read_features(tmp_path / name / "h5_files" / "b.h5")[0] for name in ("one", "many"))
    np.testing.assert_allclose(one, many, rtol=1e-4, atol=1e-5)


def test_a_run_that_was_stopped_goes_on(
    tiles: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Embedder(encoder, CPU, batch_size=8)
    embed_folder(tiles, tmp_path / "whole", whole)
    first = -(-len(read_coords(tiles / "patches" / "a.h5")[0]) // 8)
    calls = stop_after(monkeypatch, batches=first + 1)
    with pytest.raises(KeyboardInterrupt):
        embed_folder(tiles, tmp_path / "stopped", Embedder(encoder, CPU, batch_size=8))
    monkeypatch.undo()
    assert len(calls) == first + 1
    files = tmp_path / "stopped" / "h5_files"
    assert [path.name for path in files.iterdir()] == ["a.h5"]
    before = (files / "a.h5").stat().st_mtime_ns
    done = embed_folder(tiles, tmp_path / "stopped", Embedder(encoder, CPU, batch_size=8))
    assert [row.status for row in done.rows] == ["kept", "done", "no tiles"]
    assert (files / "a.h5").stat().st_mtime_ns == before
    for name in ("a", "b", "white"):
        assert (files / f"{name}.h5").read_bytes() == (tmp_path / "whole" / "h5_files" / f"{name}.h5").read_bytes()


def stop_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> list[int]:
    calls: list[int] = []
    features: Callable[[Embedder, np.ndarray], torch.Tensor] = Embedder.features

    def counted(self: Embedder, block: np.ndarray) -> torch.Tensor:
        calls.append(len(block))
        if len(calls) == batches:
            raise KeyboardInterrupt
        return features(self, block)

    monkeypatch.setattr(Embedder, "features", counted)
    return calls


def test_pt_files_are_bare_tensors(tiles: Path, tmp_path: Path, encoder: Encoder) -> None:
    embed_folder(tiles, tmp_path, Embedder(encoder, CPU))
    embed_folder(tiles, tmp_path, Embedder(encoder, CPU), pt=True)  # later, from what is there
    loaded = torch.load(tmp_path / "pt_files" / "b.pt", weights_only=True)
    assert torch.equal(loaded, torch.from_numpy(read_features(tmp_path / "h5_files" / "b.h5")[0]))


def test_tiles_that_were_cut_anew_are_embedded_anew(tmp_path: Path, encoder: Encoder) -> None:
    write_slide(tmp_path / "s" / "a.tif", side=512, box=(64, 64, 448, 448))
    tile_folder(tmp_path / "s", tmp_path / "t", Tiling(tile_px=48, um_per_px=1.0))
    embed_folder(tmp_path / "t", tmp_path / "f", Embedder(encoder, CPU))
    write_slide(tmp_path / "s" / "a.tif", side=512, box=(64, 64, 200, 200))
    tile_folder(tmp_path / "s", tmp_path / "t", Tiling(tile_px=48, um_per_px=1.0))
    (row,) = embed_folder(tmp_path / "t", tmp_path / "f", Embedder(encoder, CPU)).rows
    assert row.status == "done"


def test_a_slide_that_is_damaged_or_gone_stops_no_other(tmp_path: Path, encoder: Encoder) -> None:
    slides = tmp_path / "s"
    for name in ("a", "gone", "spoilt"):
        write_slide(slides / f"{name}.tif", side=1024, box=(0, 0, 1024, 1024))
    tile_folder(slides, tmp_path / "t", Tiling(tile_px=128, um_per_px=1.0))
    (slides / "gone.tif").unlink()
    content = bytearray((slides / "spoilt.tif").read_bytes())
    for at in range(len(content) // 3, len(content) // 2, 1):
        content[at] = 0
    (slides / "spoilt.tif").write_bytes(content)
    done = embed_folder(tmp_path / "t", tmp_path / "f", Embedder(encoder, CPU))
    rows = {row.slide: row for row in done.rows}
    assert rows["a"].status == "done"
    assert rows["gone"].status == "failed"
    assert "does not exist" in rows["gone"].reason
    assert rows["spoilt"].status == "failed"
    assert "spoilt.tif" in rows["spoilt"].reason
    assert not (tmp_path / "f" / "h5_files" / "spoilt.h5").exists()
    moved = tmp_path / "elsewhere"
    slides.rename(moved)
    write_slide(moved / "gone.tif", side=1024, box=(0, 0, 1024, 1024))
    again = embed_folder(tmp_path / "t", tmp_path / "f", Embedder(encoder, CPU), slides=moved)
    assert {row.slide: row.status for row in again.rows} == {"a": "kept", "gone": "done", "spoilt": "failed"}


def test_values_that_are_not_finite_are_no_features(tiles: Path, tmp_path: Path) -> None:
    broken = build_encoder("resnet10t", "none", image_size=32)
    with torch.no_grad():
        next(broken.module.parameters()).fill_(float("nan"))
    done = embed_folder(tiles, tmp_path, Embedder(broken, CPU))
    assert {row.slide: row.status for row in done.rows} == {"a": "failed", "b": "failed", "white": "no tiles"}
    assert "not finite for tiles 0 to" in done.rows[0].reason
    assert not (tmp_path / "h5_files" / "a.h5").exists()


def test_features_of_two_encoders_do_not_mix(tiles: Path, tmp_path: Path, encoder: Encoder) -> None:
    embed_folder(tiles, tmp_path, Embedder(encoder, CPU))
    other = build_encoder("resnet10t", "none", image_size=32, seed=1)
    with pytest.raises(ConfigError, match=f"encoder_weights {encoder.fingerprint} → {other.fingerprint}"):
        embed_folder(tiles, tmp_path, Embedder(other, CPU))
    with pytest.raises(ConfigError, match="precision fp32 → bf16"):
        embed_folder(tiles, tmp_path, Embedder(encoder, CPU, precision="bf16"))


def test_bf16_is_near(tiles: Path, tmp_path: Path, encoder: Encoder) -> None:
    for precision in ("fp32", "bf16"):
        embed_folder(tiles, tmp_path / precision, Embedder(encoder, CPU, precision=precision))
    full, half = (read_features(tmp_path / p / "h5_files" / "a.h5")[0] for p in ("fp32", "bf16"))
    assert half.dtype == np.float32
    assert np.abs(full - half).max() > 0
    assert np.abs(full - half).mean() < 0.05 * np.abs(full).mean() + 1e-3


def test_a_folder_without_tiles(tmp_path: Path, encoder: Encoder) -> None:
    with pytest.raises(DataError, match="holds no tiles"):
        embed_folder(tmp_path, tmp_path / "f", Embedder(encoder, CPU))


# The encoder


def test_weights_come_from_a_file_and_the_classifier_is_left_away(tmp_path: Path) -> None:
    import timm

    whole = timm.create_model("resnet10t", num_classes=5)
    save(tmp_path / "w.safetensors", whole.state_dict())
    built = build_encoder("resnet10t", str(tmp_path / "w.safetensors"), image_size=64)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = whole.eval().forward_head(whole.forward_features(images), pre_logits=True)
        torch.testing.assert_close(built.module(images), expected)
    assert built.width == expected.shape[1]
    assert not any(p.requires_grad for p in built.module.parameters())


def test_published_weights(shared_data: Path) -> None:
    file = shared_data / "weights" / "mobilenetv2_100.imagenet.safetensors"
    built = build_encoder("mobilenetv2_100", str(file))
    assert (built.width, built.image_size) == (1280, 224)
    assert built.fingerprint != build_encoder("mobilenetv2_100", "none").fingerprint


def test_a_transformer_gives_a_vector() -> None:
    assert build_encoder("test_vit", "none").width == 64


def test_wrong_encoders_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "w.safetensors", {"a": torch.zeros(2)})
    with pytest.raises(ModelError, match="do not fit"):
        build_encoder("resnet10t", str(tmp_path / "w.safetensors"), image_size=64)
    with pytest.raises(ConfigError, match="Did you mean"):
        build_encoder("resnet10tt", "none")
    with pytest.raises(ConfigError, match="encoders are timm's"):
        build_encoder("torchvision/resnet18", "none")
