"""One whole slide: its levels, how many µm a pixel is, and regions of it. OpenSlide is used here, and here only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from morphfed.core.errors import DataError, MissingExtraError

SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi")
"""Of files that are taken for slides."""

PLAUSIBLE_UM = (0.05, 20.0)
"""µm per pixel that a scanner may have; a file that says anything else does not know its scale."""

OBJECTIVE_UM = 10.0
"""µm per pixel of a 1× objective by convention: 20× is 0.5, 40× is 0.25."""

Origin = Literal["file", "objective power", "given"]


@dataclass(frozen=True)
class Scale:
    """How large a pixel of level 0 is.

    Attributes:
        um_per_px: µm.
        origin: ``file`` says it in µm; from its ``objective power``; or ``given`` by the user.
    """

    um_per_px: float
    origin: Origin


def require_openslide() -> Any:
    """The module, imported.

    Raises:
        MissingExtraError: not installed, or its library does not start.
    """
    try:
        import openslide
    except (ImportError, OSError) as cause:
        raise MissingExtraError(
            f"Slides are read with OpenSlide, which does not start here: {cause}.",
            fix="pip install 'morphfed[slides]'.",
        ) from cause
    return openslide


class Slide:
    """An open slide; safe to read from several threads. Use it as a context manager.

    Args:
        path: the file.
        um_per_px: of level 0, for a file that does not say it.

    Attributes:
        name: the file's name without suffix: the slide's id.
        size: (width, height) of level 0.
        levels: (width, height) of each level, finest first.
        downsamples: of each level against level 0.

    Raises:
        DataError: missing, empty, damaged, of a format that OpenSlide does not read.
        MissingExtraError: OpenSlide is not installed.
    """

    def __init__(self, path: Path, um_per_px: float | None = None) -> None:
        openslide = require_openslide()
        self.path, self.name = path, path.stem
        self._failures = (openslide.OpenSlideError, OSError)
        if not path.is_file():
            raise DataError(f"Slide {path} does not exist.", fix="check the path.")
        if not path.stat().st_size:
            raise DataError(f"Slide {path} is empty (0 bytes).", fix="copy it again from its source.")
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideUnsupportedFormatError as cause:
            raise DataError(
                f"Slide {path} is in no format that OpenSlide reads, or is cut off.",
                fix="copy it again from its source, or export it as a tiled, pyramidal TIFF.",
            ) from cause
        except self._failures as cause:
            raise self._broken("cannot be opened", cause) from cause
        self.size: tuple[int, int] = self._slide.dimensions
        self.levels: tuple[tuple[int, int], ...] = self._slide.level_dimensions
        self.downsamples: tuple[float, ...] = self._slide.level_downsamples
        self._given = um_per_px

    def _broken(self, what: str, cause: Exception) -> DataError:
        return DataError(f"Slide {self.path} {what}: {cause}.", fix="copy it again from its source, or leave it out.")

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._slide.close()

    @property
    def scale(self) -> Scale:
        """µm per pixel of level 0: what the file says, else from its objective power, else what was given.

        Raises:
            DataError: none of them.
        """
        said = [self._number(f"openslide.mpp-{axis}") for axis in "xy"]
        low, high = PLAUSIBLE_UM
        known = [value for value in said if value is not None and low <= value <= high]
        if known:
            return Scale(float(np.sqrt(known[0] * known[-1])), "file")
        if power := self.objective:
            return Scale(OBJECTIVE_UM / power, "objective power")
        if self._given is not None:
            return Scale(self._given, "given")
        wrong = next((value for value in said if value is not None), None)
        because = f" (it says {wrong:g} µm, which no scanner has)" if wrong is not None else ""
        raise DataError(
            f"Slide {self.path} does not say how many µm a pixel is{because}, nor its objective power.",
            fix="give it with --slide-um-per-px, for example 0.25 for a 40× scan.",
        )

    @property
    def objective(self) -> float | None:
        """Magnification of the scanner's objective, where the file says it."""
        power = self._number("openslide.objective-power")
        return power if power is not None and 1 <= power <= 150 else None

    def _number(self, key: str) -> float | None:
        try:
            value = float(self._slide.properties[key])
        except (KeyError, ValueError):
            return None
        return value if np.isfinite(value) else None

    def level_for(self, downsample: float) -> int:
        """The coarsest level that is no coarser than ``downsample`` (to 1 %)."""
        fine = [i for i, own in enumerate(self.downsamples) if own <= downsample * 1.01]
        return max(fine, default=0)

    def read(self, x: int, y: int, level: int, width: int, height: int) -> NDArray[np.uint8]:
        """A region as RGB; what the scanner left out is white.

        Args:
            x, y: left upper corner in pixels of level 0.
            level: which.
            width, height: in pixels of that level.

        Returns:
            ``(height, width, 3)``.

        Raises:
            DataError: the file is damaged there.
        """
        try:
            region = np.asarray(self._slide.read_region((x, y), level, (width, height)))
        except self._failures as cause:
            raise self._broken(f"cannot be read at ({x}, {y}), level {level}", cause) from cause
        if region[..., 3].min() == 255:
            return np.ascontiguousarray(region[..., :3])
        share = region[..., 3:].astype(np.float32) / 255
        laid = region[..., :3] * share + 255 * (1 - share)
        return np.asarray(np.rint(laid), np.uint8)

    def overview(self, um_per_px: float) -> NDArray[np.uint8]:
        """The whole slide as RGB ``(H, W, 3)``, each pixel about ``um_per_px`` wide, at least one pixel.

        Raises:
            DataError: the level is damaged, or too large to be read whole.
        """
        from PIL import Image

        wanted = um_per_px / self.scale.um_per_px
        level = self.level_for(wanted)
        rest = max(1.0, wanted / self.downsamples[level])
        width, height = (max(1, round(side / rest)) for side in self.levels[level])
        out = np.empty((height, width, 3), np.uint8)
        # Strips of whole output rows: a slide with one level only must not be in memory whole.
        rows = max(1, int(_STRIP_PIXELS / max(1, self.levels[level][0]) / rest))
        for top in range(0, height, rows):
            bottom = min(height, top + rows)
            first, last = (round(edge * self.levels[level][1] / height) for edge in (top, bottom))
            strip = self.read(
                0, round(first * self.downsamples[level]), level, self.levels[level][0], max(1, last - first)
            )
            small = Image.fromarray(strip).resize((width, bottom - top), Image.Resampling.BOX)
            out[top:bottom] = np.asarray(small)
        return out


_STRIP_PIXELS = 32_000_000
