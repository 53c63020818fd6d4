"""The manifest survives its two formats, and says every bad value at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from morphfed.core.errors import DataError, StorageError
from morphfed.data.manifest import COLUMNS, Manifest, empty_manifest


def row(**changes: Any) -> dict[str, Any]:
    return {
        "path": "a.jpg",
        "site": "kampala",
        "patient": None,
        "slide": None,
        "source_label": "LY",
        "label": "lymphocyte",
        "split": None,
        "um_per_px": None,
        "width": 360,
        "height": 363,
        "sha256": "0" * 64,
        "source": "folders",
    } | changes


def manifest(root: Path, *rows: dict[str, Any]) -> Manifest:
    return Manifest(pd.DataFrame(list(rows)), root)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_round_trip_keeps_text_numbers_and_nulls(tmp_path: Path, suffix: str) -> None:
    rows = [
        row(path="å/1, x.jpg", patient="007", split="train", um_per_px=0.1),
        row(path="2.jpg", patient="NA", slide='say "so"', label=None, sha256=None, width=None, height=None),
    ]
    file = tmp_path / f"m.{suffix}"
    written = manifest(tmp_path, *rows).write(file)
    read = Manifest.read(file)
    pd.testing.assert_frame_equal(read.frame, written.frame)
    assert list(read.frame.columns) == list(COLUMNS)
    assert list(read.frame["patient"]) == ["007", "NA"]
    assert list(read.frame["label"]) == ["lymphocyte", None]
    assert read.frame["width"][0] == 360
    assert read.frame["width"].isna()[1]
    assert list(read.frame["slide"]) == [None, 'say "so"']
    assert str(read.frame["width"].dtype) == "Int64"


def test_all_null_columns_survive_csv(tmp_path: Path) -> None:
    manifest(tmp_path, row(um_per_px=None, width=None, height=None)).write(tmp_path / "m.csv")
    frame = Manifest.read(tmp_path / "m.csv").frame
    assert str(frame["um_per_px"].dtype) == "float64"
    assert str(frame["width"].dtype) == "Int64"
    assert frame["patient"][0] is None


def test_every_bad_value_is_named_with_its_spreadsheet_row(tmp_path: Path) -> None:
    rows = [
        row(path="1.jpg"),
        row(path="2.jpg", site="Mulago Hospital", width=-3, um_per_px="thin", split="tset"),
        row(path="3.jpg", source_label=None, sha256="beef", height=1.5),
        row(path="3.jpg", um_per_px=0),
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(DataError) as caught:
        Manifest.read(tmp_path / "m.csv")
    text = str(caught.value)
    for expected in (
        "has 10 bad values",
        "row 3, site: 'Mulago Hospital', expected a lower-case name",
        "row 3, width: -3",
        "row 3, um_per_px: 'thin', expected a positive number",
        "row 3, split: 'tset', expected train, validation, test",
        "row 4, source_label: nothing, expected a value",
        "row 4, sha256: 'beef', expected 64 hexadecimal digits",
        "row 4, height: 1.5, expected a whole number",
        "row 4, path: '3.jpg', expected each path once",
        "row 5, path: '3.jpg', expected each path once",
        "row 5, um_per_px: 0.0",
    ):
        assert expected in text


def test_many_bad_values_are_counted_not_hidden(tmp_path: Path) -> None:
    pd.DataFrame([row(path=f"{i}.jpg", split="x") for i in range(100)]).to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(DataError, match=r"100 bad values[\s\S]*… and 60 more"):
        Manifest.read(tmp_path / "m.csv")


def test_missing_column_names_the_misspelt_one(tmp_path: Path) -> None:
    pd.DataFrame([row()]).rename(columns={"patient": "patients"}).to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(DataError, match=r"Column 'patient' is missing. Did you mean 'patients'\?"):
        Manifest.read(tmp_path / "m.csv")


def test_extra_columns_are_kept_behind(tmp_path: Path) -> None:
    frame = pd.DataFrame([row(age="61")])
    assert Manifest(frame[["age", *COLUMNS]], tmp_path).frame.columns[-1] == "age"


def test_a_bad_row_is_refused_at_writing_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="site"):
        manifest(tmp_path, row(site="Not OK")).write(tmp_path / "m.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("m.csv", b"", "cannot be read"),
        ("m.csv", b"path,site\n\xff\xfe,x\n", "cannot be read"),
        ("m.parquet", b"PAR1 not really", "cannot be read"),
        ("m.xlsx", b"", "is a .parquet or .csv file"),
    ],
)
def test_damaged_files_are_data_errors(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=expected):
        Manifest.read(tmp_path / name)


def test_a_missing_file_suggests_the_one_beside_it(tmp_path: Path) -> None:
    manifest(tmp_path, row()).write(tmp_path / "manifest.csv")
    with pytest.raises(DataError, match=r"Did you mean 'manifest.csv'\?"):
        Manifest.read(tmp_path / "manifets.csv")


def test_spreadsheet_byte_order_mark_is_not_part_of_a_name(tmp_path: Path) -> None:
    pd.DataFrame([row()]).to_csv(tmp_path / "m.csv", index=False, encoding="utf-8-sig")
    assert len(Manifest.read(tmp_path / "m.csv")) == 1


def test_paths_follow_the_file_that_holds_them(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    inside = manifest(data, row(path="lab/1.jpg"))
    assert inside.write(tmp_path / "m.csv").frame["path"][0] == "data/lab/1.jpg"
    elsewhere = inside.write(run / "m.parquet")
    assert elsewhere.frame["path"][0] == (data / "lab" / "1.jpg").as_posix()
    assert Manifest.read(run / "m.parquet").files() == [data / "lab" / "1.jpg"]


def test_rerooting_there_and_back_is_the_identity(tmp_path: Path) -> None:
    start = manifest(tmp_path / "a", row(path="x/1.jpg"), row(path="2.jpg"))
    back = start.rerooted(tmp_path / "b").rerooted(tmp_path / "a")
    pd.testing.assert_frame_equal(back.frame, start.frame)


def test_concat_joins_roots_and_keeps_files(tmp_path: Path) -> None:
    one = manifest(tmp_path / "one", row(path="1.jpg", site="one"))
    two = manifest(tmp_path / "two" / "deep", row(path="2.jpg", site="two", width=None))
    joined = Manifest.concat([one, empty_manifest(tmp_path), two])
    assert joined.root == tmp_path
    assert joined.files() == [*one.files(), *two.files()]
    assert joined.sites == ["one", "two"]
    assert list(joined.for_site("two").frame["path"]) == ["two/deep/2.jpg"]
    assert str(joined.frame["width"].dtype) == "Int64"


def test_unknown_site_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Did you mean 'kampala'\?"):
        manifest(tmp_path, row()).for_site("kampalla")
    with pytest.raises(DataError, match="no manifest to join"):
        Manifest.concat([])


def test_read_only_folder_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(StorageError, match="cannot be written"):
        manifest(tmp_path, row()).write(tmp_path / "m.csv")
