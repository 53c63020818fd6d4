"""CPA: sites exchange class counts and mean features, and a site's loss answers to both.

Chen et al., IEEE TMI 2022: conjoint prototype-aligned loss, ``-Σ_c γ_c y_c log p̂_c`` (``tasks/seesaw.py``).

* Class counts are summed over the sites before round 1, by the same declared exchange as for ``train.loss.prior``.
* A site's prototype of a class is the mean of what enters the classifier, over the images that it trained on in the
  round, of the model that the site uses (the personal one where there is one). With the model go up the prototypes
  ``(C, D)`` and a row that says which exist; down come their mean and spread over the sites that have the class.
* ``prototypes = "average"`` compares with that mean; ``"gaussian"`` with a draw around it, of the spread but at least
  ``std_floor``, anew in each round and the same at all sites. The published floor of 1 is large beside features that
  are smaller than 1: γ is then mostly chance.
* γ is a constant of a round: no gradient aligns prototypes, classes are only weighed.

Of masks the classes are those of pixels, the background among them, and the counts are pixels. A prototype is the mean
over images of the mean over an image's pixels of the class, of what enters the last convolution of the decoder, so
that no image counts for more because its cell is larger. The authors add up the features of a class's pixels over all
images and divide by the number of all pixels; ours is free of how much of its pictures a site's structures cover.

Unlike the authors' code the exchange is once a round, not after each pass, so that the number of messages is that of
the other methods; γ in a round follows from the round before, at the site and over all sites. Prototypes are not reset
between rounds, and a class that is missing at a site, or everywhere, has γ = 1 there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from morphfed.algorithms.base import AlgorithmConfig, CoordinatorHalf, Outlook, SiteWork, Specs
from morphfed.algorithms.fedper import need_head
from morphfed.algorithms.moon import Features
from morphfed.algorithms.prr.objective import Aim, Objective
from morphfed.core.seeding import torch_stream
from morphfed.core.types import Spec, Tensors, Upload
from morphfed.models.layout import Layout
from morphfed.tasks.seesaw import conjoint, log_mitigation, refinement

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIX = "prototypes/"
MEAN, SEEN = f"{PREFIX}mean", f"{PREFIX}seen"
"""Up and in a site's state: mean features ``(C, D)``, and 1 for each class that the site trained on ``(C,)``."""

SPREAD, SITES = f"{PREFIX}spread", f"{PREFIX}sites"
"""Down, beside the mean: standard deviation over the sites ``(C, D)``, and how many sites have the class ``(C,)``."""


class PrototypeConfig(AlgorithmConfig):
    """Keys of CPA."""

    beta: float = Field(0.8, ge=0, description="β, power of the class counts' ratio in p̂; 0: cross-entropy")
    tau: float = Field(3.0, gt=0, description="τ, softens γ; as published 3, of masks (where it is not said) 1")
    prototypes: Literal["gaussian", "average"] = Field(
        "gaussian",
        description="common prototype. average: the mean over sites; gaussian: a draw around it each round; as "
        "published, of masks average",
    )
    std_floor: float = Field(1.0, ge=0, description="least standard deviation of gaussian; 1 as published")
    init_share: float = Field(
        0.3,
        ge=0,
        le=1,
        description="share of the rounds before γ acts; published: 15 of 50, of masks 1 of 20, which is 0.05",
    )


OF_MASKS: Mapping[str, float | str] = MappingProxyType({"tau": 1.0, "prototypes": "average", "init_share": 0.05})
"""Defaults of masks: those of the authors' script for the prostate."""


def prototype_specs(layout: Layout, specs: Specs) -> dict[str, Spec]:
    """What one upload holds beside the model.

    Raises:
        ConfigError: the network's classifier is not known.
    """
    need_head(layout, "prr with loss = 'cpa'")
    head = next(name for name in specs if name in layout.head and len(specs[name].shape) > 1)
    classes, width = specs[head].shape[:2]
    return {MEAN: Spec((classes, width), "float32"), SEEN: Spec((classes,), "float32")}


class PrototypeObjective(Objective):
    """The CPA loss of a site, which also collects the site's prototypes.

    Args:
        config: its keys.
    """

    def __init__(self, config: PrototypeConfig) -> None:
        self._config = config

    @contextmanager
    def of(self, work: SiteWork, download: Tensors, watched: nn.Module) -> Iterator[Aim]:
        """The losses of a round; afterwards the site's state holds its prototypes."""
        if work.class_counts is None:
            raise RuntimeError("the class counts of the federation must be exchanged first")
        log_s = log_mitigation(torch.from_numpy(work.class_counts), power=self._config.beta)
        gamma = self.gamma(work, download)
        sums, seen = torch.zeros_like(download[MEAN]), torch.zeros_like(download[SITES])

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            return conjoint(logits, labels, log_s, gamma)

        with Features.of(watched, work.layout) as features:

            def watching(logits: Tensor, labels: Tensor) -> Tensor:
                if labels.ndim == 1:
                    add_images(sums, seen, features.take().detach(), labels)
                else:
                    add_pixels(sums, seen, features.take_maps().detach(), labels)
                return loss(logits, labels)

            aim = Aim(watching, loss, {})
            yield aim
        aim.found = {MEAN: sums / seen.clamp(min=1)[:, None], SEEN: (seen > 0).to(seen.dtype)}
        work.state.update({name: tensor.clone() for name, tensor in aim.found.items()})

    def gamma(self, work: SiteWork, download: Tensors) -> Tensor:
        """γ of the round ``(C,)``; 1 in the first ``init_share`` of the rounds, and where a prototype is missing."""
        sites = download[SITES]
        if MEAN not in work.state or work.round - 1 < self._config.init_share * work.rounds:
            return torch.ones_like(sites)
        common = download[MEAN]
        if self._config.prototypes == "gaussian":
            noise = torch.randn(common.shape, generator=torch_stream(work.seed, "prototypes", work.round))
            common = common + noise.to(common) * download[SPREAD].clamp(min=self._config.std_floor)
        known = (sites > 0) & (work.state[SEEN].to(sites.device) > 0)
        return refinement(work.state[MEAN].to(common), common, known, tau=self._config.tau)


def add_images(sums: Tensor, seen: Tensor, z: Tensor, labels: Tensor) -> None:
    """Add the images' features to those of their classes.

    Args:
        sums, seen: ``(C, D)`` and ``(C,)``, changed in place.
        z: ``(n, D)``.
        labels: int64 ``(n,)``.
    """
    sums.index_add_(0, labels, z.to(sums.dtype))
    seen.index_add_(0, labels, torch.ones_like(labels, dtype=seen.dtype))


def add_pixels(sums: Tensor, seen: Tensor, z: Tensor, masks: Tensor) -> None:
    """Add each image's mean features of every class that it shows; one image at a time, so that no copy of all is made.

    Args:
        sums, seen: ``(C, D)`` and ``(C,)``, changed in place; seen counts images.
        z: ``(n, D, H, W)``.
        masks: integers ``(n, H, W)``.
    """
    for features, mask in zip(z, masks, strict=True):
        shown = F.one_hot(mask.flatten().long(), len(seen)).to(sums.dtype)
        pixels = shown.sum(dim=0)
        sums += (features.flatten(1).to(sums.dtype) @ shown).T / pixels.clamp(min=1)[:, None]
        seen += pixels > 0


class PrototypeExchange(CoordinatorHalf):
    """Combines the sites' prototypes; the rest of an upload goes to another rule.

    Args:
        rule: what is done with the model.
        specs: of :func:`prototype_specs`.
        device: where the model is.
    """

    def __init__(self, rule: CoordinatorHalf, specs: Specs, device: torch.device) -> None:
        self._rule = rule
        classes, width = specs[MEAN].shape
        self._common: Tensors = {
            MEAN: torch.zeros(classes, width, device=device),
            SPREAD: torch.zeros(classes, width, device=device),
            SITES: torch.zeros(classes, device=device),
        }
        self._mean, self._squares, self._sites = self._empty()

    def _empty(self) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.zeros_like(self._common[MEAN], dtype=torch.float64)
        return wide, wide.clone(), torch.zeros_like(self._common[SITES], dtype=torch.float64)

    def plan(self, outlook: Outlook) -> None:
        """Pass it on."""
        self._rule.plan(outlook)

    def download(self, site: str) -> Tensors:
        """The rule's download, and the common prototypes of the round before."""
        return {**self._rule.download(site), **self._common}

    def own(self, site: str) -> Tensors:
        """The rule's."""
        return self._rule.own(site)

    def begin_round(self, round_number: int, cohort: Iterable[str]) -> None:
        """Forget the last round's sums."""
        self._mean, self._squares, self._sites = self._empty()
        self._rule.begin_round(round_number, cohort)

    @torch.no_grad()
    def fold(self, upload: Upload) -> None:
        """Add one site's prototypes to their mean and spread (Welford's update), class by class."""
        seen = (upload.tensors[SEEN] > 0).to(self._sites)
        self._sites += seen
        change = (upload.tensors[MEAN].to(self._mean) - self._mean) * seen[:, None]
        self._mean += change / self._sites.clamp(min=1)[:, None]
        self._squares += change * (upload.tensors[MEAN].to(self._mean) - self._mean)
        model = {name: t for name, t in upload.tensors.items() if not name.startswith(PREFIX)}
        self._rule.fold(Upload(upload.site, upload.round, model, upload.weight, upload.metrics))

    @torch.no_grad()
    def end_round(self) -> None:
        """Settle the prototypes; of a round without uploads the old ones stay."""
        if bool(self._sites.any()):
            variance = self._squares / (self._sites - 1).clamp(min=1)[:, None]
            found = {MEAN: self._mean, SPREAD: variance.clamp(min=0).sqrt(), SITES: self._sites}
            self._common = {name: t.to(self._common[name].dtype) for name, t in found.items()}
        self._rule.end_round()

    def model(self) -> Tensors:
        """The rule's."""
        return self._rule.model()

    def state(self) -> Tensors:
        """The rule's state and the common prototypes."""
        return {**self._rule.state(), **self._common}

    def load_state(self, tensors: Tensors) -> None:
        """Inverse of :meth:`state`."""
        self._common = {name: tensors[name].to(old.device, copy=True) for name, old in self._common.items()}
        self._rule.load_state({name: t for name, t in tensors.items() if not name.startswith(PREFIX)})
