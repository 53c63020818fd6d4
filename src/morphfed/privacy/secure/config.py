"""Keys of secure aggregation in a study."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from morphfed.core.config import Config

MOST_SITES = 1 << 10
"""So that sums of single numbers (``secure.fixed``) stay in 64 bits."""


class SecureConfig(Config):
    """The coordinator sees sums over the sites only."""

    on: bool = Field(False, description="uploads leave a site under masks that only cancel in the sum; extra secure")
    threshold: int | None = Field(
        None,
        ge=2,
        description="t, sites that can open a sum together, fewer cannot; more than half; empty: just more than half",
    )
    bits: Literal[16, 32] = Field(32, description="of each number under its mask; 16 halves the upload, and rounds")
    largest: float = Field(
        65536.0,
        gt=0,
        le=2.0**60,
        description="a site in whose upload a number has changed by more in a round does not take part in it",
    )

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        if self.on:
            return self
        for key in ("threshold", "bits", "largest"):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"'{key}' has no meaning without secure aggregation; set on = true, or leave it out")
        return self

    def threshold_for(self, sites: int) -> int:
        """t for a number of training sites; more than half of them if the study does not say."""
        return max(2, sites // 2 + 1) if self.threshold is None else self.threshold

    def unfit_for(self, sites: int) -> str:
        """Why it cannot be used with this number of training sites; empty: it can."""
        if sites < 2:
            return "a sum over one site is that site's upload: it needs two training sites at least"
        if sites > MOST_SITES:
            return f"sums of more than {MOST_SITES:,} sites may not fit into their integers; {sites:,} train"
        t = self.threshold_for(sites)
        if t > sites:
            return f"threshold = {t}, but {sites} sites train: no sum could be opened"
        if 2 * t <= sites:
            return (
                f"threshold = {t} is not more than half of {sites} sites: a coordinator that tells one half that a "
                "site is gone and the other half that it is not could open that site's upload"
            )
        return ""
