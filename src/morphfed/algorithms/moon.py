"""MOON: a site's features are drawn to the global model's and away from its own of the round before.

Li, He, Song: Model-contrastive federated learning. CVPR 2021. Equations 3 and 4: a site minimises
``F_k(w) + μ ℓ_con`` with

``ℓ_con = -log( e^{cos(z, z_glob) / τ} / (e^{cos(z, z_glob) / τ} + e^{cos(z, z_prev) / τ}) )``

over the images of a batch, where z are features of the model in training, z_glob of the downloaded one and z_prev of
the model that this site trained in its last round.

* z is the input of the classifier. The paper puts a projection head of two layers before the classifier and takes
  its output; that would be another network than the other arms have, so here it is left out.
* As in the authors' code all three see the same augmented batch; the two frozen models in evaluation mode, so
  they draw no random numbers and their running statistics stand still.
* In a site's first round z_prev is z_glob, ℓ_con is log 2 and its gradient zero: it trains plainly.
* The paper tries μ in {0.1, 1, 5, 10} with τ = 0.5; defaults are those of the authors' code.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from pydantic import Field

from morphfed.algorithms.base import ALGORITHMS, Algorithm, AlgorithmConfig, Answer, Facts, SiteHalf, SiteWork
from morphfed.algorithms.fedavg import FedAvgConfig, PlainSite, averaging, mean_alone
from morphfed.algorithms.fedper import need_head
from morphfed.core.types import Tensors
from morphfed.models.layout import Layout, head_module

if TYPE_CHECKING:
    from torch import Tensor, nn


class MoonConfig(FedAvgConfig):
    """Keys of MOON."""

    mu: float = Field(1.0, ge=0, description="μ, weight of the contrastive term; 0 is FedAvg")
    temperature: float = Field(0.5, gt=0, description="τ, temperature of the cosine similarities")


def contrastive(z: Tensor, z_glob: Tensor, z_prev: Tensor, temperature: float) -> Tensor:
    """ℓ_con (equation 3), mean over the batch, a scalar ≥ 0.

    Args:
        z, z_glob, z_prev: features ``(n, D)``.
        temperature: τ > 0.
    """
    to_glob = F.cosine_similarity(z, z_glob, dim=1)
    to_prev = F.cosine_similarity(z, z_prev, dim=1)
    return F.softplus((to_prev - to_glob) / temperature).mean()


class Features:
    """What last entered a network's classifier."""

    def __init__(self) -> None:
        self._last: Tensor | None = None

    def take(self) -> Tensor:
        """The features of each image in the last forward pass, once; float32 ``(n, D)``."""
        z = self.take_maps().float()
        return z.mean(dim=(2, 3)) if z.ndim == 4 else z.flatten(1)

    def take_maps(self) -> Tensor:
        """The same as they entered it, in their own type: ``(n, D, H, W)`` where a convolution draws masks of them."""
        if self._last is None:
            raise RuntimeError("the classifier was not called in this forward pass")
        z, self._last = self._last, None
        return z

    def _see(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._last = inputs[0]

    @classmethod
    @contextmanager
    def of(cls, model: nn.Module, layout: Layout) -> Iterator[Features]:
        """Listen to ``model`` within."""
        features = cls()
        handle = head_module(model, layout).register_forward_pre_hook(features._see)
        try:
            yield features
        finally:
            handle.remove()


def _frozen(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that is not trained."""
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    frozen.zero_grad()  # the copy also took over the gradients of whatever was trained last
    return frozen


class ContrastiveSite(SiteHalf):
    """Train with the contrastive term; keep what was uploaded for the next round.

    Args:
        mu: μ ≥ 0.
        temperature: τ > 0.
    """

    def __init__(self, mu: float, temperature: float) -> None:
        self._mu, self._temperature = mu, temperature

    def train(self, work: SiteWork, download: Tensors) -> Answer:
        """One round; with μ = 0 exactly the plain one."""
        if self._mu == 0:
            return PlainSite().train(work, download)
        answer = self._contrast(work, download) if work.state else PlainSite().train(work, download)
        work.state.update({name: t.clone() for name, t in answer.tensors.items()})
        return answer

    def _contrast(self, work: SiteWork, download: Tensors) -> Answer:
        glob = _frozen(work.model)
        work.load(work.state)
        prev = _frozen(work.model)
        work.load(download)
        with (
            Features.of(work.model, work.layout) as mine,
            Features.of(glob, work.layout) as of_glob,
            Features.of(prev, work.layout) as of_prev,
        ):

            def term(images: Tensor, logits: Tensor) -> Tensor:
                z = mine.take()
                low = logits.dtype in (torch.bfloat16, torch.float16)
                with torch.no_grad(), torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=low):
                    glob(images)
                    prev(images)
                return self._mu * contrastive(z, of_glob.take(), of_prev.take(), self._temperature)

            report = work.fit(extra_loss=term)
        return Answer(work.current(), report)


def _travels(config: AlgorithmConfig, layout: Layout) -> tuple[str, ...]:
    need_head(layout, "moon")
    return layout.order


def _site(config: AlgorithmConfig) -> ContrastiveSite:
    keys = cast("MoonConfig", config)
    return ContrastiveSite(keys.mu, keys.temperature)


ALGORITHMS.register("moon")(
    Algorithm(
        name="moon",
        title="model-contrastive training",
        paper="Li et al., CVPR 2021",
        equation="min_w F_k(w) + μ ℓ_con(z; z_glob, z_prev),  then  w ← Σ_k (n_k / n) w_k",
        config=MoonConfig,
        site=_site,
        coordinator=averaging,
        facts=Facts(
            travels="the model, both ways",
            stays="images, labels, optimiser state, the site's model of the round before",
            memory="2 models, whatever the number of sites; a site 3 while it trains",
            cost="1 × local training and two more forward passes a step, from the second round on",
        ),
        travels=_travels,
        tasks=frozenset({"classification"}),  # z is one vector an image: masks have none, heads of bags one an instance
        sums=mean_alone,
    )
)
