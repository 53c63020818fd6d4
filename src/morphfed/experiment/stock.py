"""What a study's images are read from: pictures kept in the cache, or bags where they lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from morphfed.core.progress import Reporter
from morphfed.data.cache import ImageStore, Picture
from morphfed.data.scale import crop_side
from morphfed.experiment.assemble import column

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from morphfed.data.manifest import Manifest
    from morphfed.experiment.study import Study
    from morphfed.training.dataset import Gather


class Stock(ABC):
    """Images of one run."""

    @abstractmethod
    def columns(self, manifest: Manifest) -> dict[str, Any]:
        """Columns that the prepared rows get so that they can be found again, in the order of the manifest's rows.

        Args:
            manifest: what takes part, with ``um_per_px`` of file or site.
        """

    @abstractmethod
    def fill(self, prepared: pd.DataFrame, *, report: Reporter, workers: int | None) -> list[str]:
        """Make sure that everything that can be read is there; return what a user should know."""

    @abstractmethod
    def there(self, prepared: pd.DataFrame) -> NDArray[np.bool_]:
        """Which rows can be read."""

    @abstractmethod
    def open(self, prepared: pd.DataFrame) -> tuple[Gather, NDArray[np.int64]]:
        """The store, and the number in it of each row; all of them can be read."""


class Pictures(Stock):
    """Pictures, decoded, cropped and resized once.

    Args:
        study: their size and field.
        run: folder that the prepared paths are relative to.
        cache: where they are kept.
    """

    def __init__(self, study: Study, run: Path, cache: Path) -> None:
        self._study, self._run = study, run
        self._store = ImageStore(cache, size=study.data.image_size, pad=study.data.pad)

    def columns(self, manifest: Manifest) -> dict[str, Any]:
        """The side of each crop in pixels, and the picture's key in the store."""
        import pandas as pd

        frame = manifest.frame
        um_per_px = frame["um_per_px"].to_numpy(dtype=float)
        crops = [crop_side(self._study.data.field_um, None if np.isnan(um) else float(um)) for um in um_per_px]
        known = zip(manifest.files(), column(frame, "sha256"), crops, strict=True)
        keys = [
            None if digest is None else self._store.key(Picture(file, digest, crop)) for file, digest, crop in known
        ]
        return {
            "crop_px": np.array([np.nan if crop is None else crop for crop in crops]),
            "key": pd.Series(keys, dtype=object),
        }

    def fill(self, prepared: pd.DataFrame, *, report: Reporter, workers: int | None) -> list[str]:
        """Decode what is not in the store yet."""
        crops = prepared["crop_px"].to_numpy(dtype=float)
        rows = zip(prepared["path"], column(prepared, "sha256"), crops, strict=True)
        pictures = [
            Picture(self._run / path, digest, None if np.isnan(crop) else int(crop))
            for path, digest, crop in rows
            if digest is not None
        ]
        done = self._store.ensure(pictures, workers=workers, report=report)
        return [f"cache: {done.rebuilt} damaged pictures were made again"] if done.rebuilt else []

    def there(self, prepared: pd.DataFrame) -> NDArray[np.bool_]:
        """Those whose key the store knows."""
        found: NDArray[np.bool_] = prepared["key"].isin(self._store.keys()).to_numpy()
        return found

    def open(self, prepared: pd.DataFrame) -> tuple[Gather, NDArray[np.int64]]:
        """The store and its rows."""
        return self._store, self._store.rows_of(prepared["key"])


class BagStock(Stock):
    """Bags, which stay where they are.

    Args:
        study: whether features are standardised.
        run: folder that the prepared paths are relative to, and that keeps what they are standardised with.
    """

    STANDARDS = "standards.npz"

    def __init__(self, study: Study, run: Path) -> None:
        self._study, self._run = study, run

    def columns(self, manifest: Manifest) -> dict[str, Any]:
        """Instances, width and encoder of each bag."""
        from morphfed.data.bags import drafting as d

        return {name: manifest.frame[name] for name in (d.INSTANCES, d.DIM, d.ENCODER)}

    def fill(self, prepared: pd.DataFrame, *, report: Reporter, workers: int | None) -> list[str]:
        """Measure each site's features, where they are to be standardised and that was not done yet."""
        from morphfed.core.files import writing
        from morphfed.core.progress import tracked
        from morphfed.data.bags.store import standard_of

        if self._study.data.standardise == "none" or (self._run / self.STANDARDS).is_file():
            return []
        readable = prepared[self.there(prepared)]
        found: dict[str, NDArray[np.float32]] = {}
        for site in tracked(list(self._study.sites), report, "standardise", "measuring features"):
            here = readable[readable["site"] == site]
            trained = here[here["split"] == "train"]
            own = trained if len(trained) else here  # a held-out site has nothing but test bags; no label is looked at
            if len(own):
                standard = standard_of([self._run / path for path in own["path"]])
                found[f"{site}/mean"], found[f"{site}/spread"] = standard.mean, standard.spread
        with writing(self._run / self.STANDARDS) as temporary, temporary.open("wb") as file:
            np.savez(file, **found)  # type: ignore[arg-type]  # no site is called allow_pickle
        return []

    def there(self, prepared: pd.DataFrame) -> NDArray[np.bool_]:
        """Those whose file is there."""
        from morphfed.data.bags.store import file_at

        return np.array([file_at(self._run / path).is_file() for path in prepared["path"]], dtype=np.bool_)

    def open(self, prepared: pd.DataFrame) -> tuple[Gather, NDArray[np.int64]]:
        """The bags in the order of the rows."""
        from morphfed.data.bags.drafting import DIM, INSTANCES
        from morphfed.data.bags.store import BagStore, Standard

        standards: dict[str, Standard] = {}
        if self._study.data.standardise != "none":
            with np.load(self._run / self.STANDARDS, allow_pickle=False) as saved:
                for site in self._study.sites:
                    if f"{site}/mean" in saved.files:
                        standards[site] = Standard(saved[f"{site}/mean"], saved[f"{site}/spread"])
        store = BagStore(
            [self._run / path for path in prepared["path"]],
            prepared[INSTANCES].to_numpy(dtype=np.int64),
            int(prepared[DIM].iloc[0]) if len(prepared) else 1,
            [standards.get(site) for site in prepared["site"]],
        )
        return store, np.arange(len(prepared))  # type: ignore[return-value]  # read by BagSet alone
