"""pFedHN: a hyper-network at the coordinator makes each site's weights from a learned embedding of that site.

Shamsian, Navon, Fetaya, Chechik: Personalized federated learning using hypernetworks. ICML 2021, algorithm 1. With
``θ_k = h(v_k; φ)``, site k trains θ_k on its own images to ``θ̃_k``, and the chain rule takes ``Δ_k = θ_k - θ̃_k`` for
the gradient of the site's loss by θ_k:

``g_φ = Σ_k (∂θ_k / ∂φ)ᵀ Δ_k``,  ``g_{v_k} = (∂θ_k / ∂v_k)ᵀ Δ_k``,  then one step of SGD.

With one step of plain SGD at rate η at the site ``Δ_k = η ∇L_k``, so g is exactly η times the gradient of the loss by φ
and v_k. Lin et al. (Scientific Reports 13:1724, 2023) federate classifiers of whole slides with a hyper-network at the
coordinator; that they use this update fits their abstract, their text was not at hand.

Decided here, because the papers leave it open or have one site a step:

* All sites take part in a round, so their gradients are *summed* to one step (``weighting`` tells how they count), and
  ``clip`` bounds the norm of that sum. Published is one site drawn for each step; a sum at rate α does to first order
  what K such steps do.
* The first generated weights are the given (pretrained) ones for every site, to the bit
  (:mod:`morphfed.models.hypernetwork`); published are random ones.
* ``generate`` tells which trained weights are made; the *rest*, running statistics included, is averaged as in FedAvg
  (``rest = "average"``) or stays at each site (``"stay"``). ``generate = "body"`` with ``"stay"`` is the paper's
  pFedHN-PC.
* A site of ``newcomers`` never moves φ. In the last ``newcomer_rounds`` rounds φ, the rest and all other embeddings
  stand still, and only the newcomers' embeddings are fitted, from the mean of the others (the paper's section 5.4 fits
  them after training). Until then a newcomer has the weights of the mean embedding.
* A held-out site may not train, so it cannot fit an embedding: it is judged with the mean of the training sites'
  embeddings. The papers define nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from morphfed.algorithms.base import (
    ALGORITHMS,
    Algorithm,
    AlgorithmConfig,
    CoordinatorHalf,
    Facts,
    Outlook,
)
from morphfed.algorithms.fedavg import PlainSite
from morphfed.algorithms.fedper import need_head
from morphfed.algorithms.mean import Averaging, RunningMean, Weighting
from morphfed.core.errors import ConfigError
from morphfed.core.seeding import torch_stream
from morphfed.core.types import Tensors, Upload
from morphfed.models.hypernetwork import HeadKind, HyperNetwork
from morphfed.models.layout import Layout
from morphfed.training.optimise import export_state, import_state

NETWORK, EMBEDDING, OPTIMISER, REST = "phi/", "embedding/", "optimizer/", "rest/"
"""Prefixes in the coordinator's state."""
ROUND = "round"


class HypernetworkConfig(AlgorithmConfig):
    """Keys of pFedHN."""

    generate: Literal["all", "attention+classifier", "classifier", "body"] = Field(
        "all", description="trained weights that the hyper-network makes; body: all but the classifier (pFedHN-PC)"
    )
    rest: Literal["average", "stay"] = Field(
        "average",
        description="what is not generated, running statistics included. average: as in FedAvg; stay: at each site",
    )
    embedding: int | None = Field(None, ge=1, description="E, numbers of a site's embedding v_k; empty: int(1 + K / 4)")
    hidden: int = Field(100, ge=1, description="H, width of the trunk")
    layers: int = Field(3, ge=0, description="layers of the trunk after the first")
    head: HeadKind = Field(
        "low-rank",
        description="full: a linear layer for each tensor, as published, H parameters for each generated weight; "
        "chunked: one layer for all chunks; low-rank: a product of two factors for each matrix",
    )
    rank: int = Field(4, ge=1, description="r, columns of a factor; of head = low-rank")
    chunk: int = Field(4096, ge=1, description="weights of a chunk; of head = chunked")
    max_parameters: int = Field(
        100_000_000, ge=1, description="a larger hyper-network is refused; training it takes 16 bytes a parameter"
    )
    lr: float = Field(0.01, gt=0, description="α, rate of φ; about α K of FedAvg's mean change is taken a round")
    embed_lr: float | None = Field(None, gt=0, description="rate of the embeddings v_k; empty: lr")
    momentum: float = Field(0.9, ge=0, lt=1, description="of φ and the embeddings")
    weight_decay: float = Field(1e-3, ge=0, description="of φ and the embeddings")
    clip: float = Field(50.0, ge=0, description="largest norm of the summed gradient; 0: any")
    weighting: Weighting = Field(
        "uniform", description="uniform: every site alike, as published; images: K n_k / n; of the rest's mean too"
    )
    newcomers: tuple[str, ...] = Field((), description="training sites that fit their embedding only")
    newcomer_rounds: int = Field(
        0, ge=0, description="last rounds, in which φ stands still and the newcomers fit; needs newcomers"
    )


def generated(config: HypernetworkConfig, layout: Layout) -> tuple[str, ...]:
    """Trained weights that the hyper-network makes, in the order of the state dict.

    Raises:
        ConfigError: the network has no part of that name.
    """
    if config.generate != "all":
        need_head(layout, "hypernetwork")
    parts = {
        "all": layout.parameters,
        "attention+classifier": layout.attention | layout.head,
        "classifier": layout.head,
        "body": layout.parameters - layout.head,
    }
    if config.generate == "attention+classifier" and not layout.attention:
        raise ConfigError(
            "hypernetwork: generate = 'attention+classifier', but this network has no attention over instances.",
            fix="generate 'all', 'body' or 'classifier', or choose a network for bags that has an attention.",
        )
    chosen = layout.parameters & parts[config.generate]
    if not chosen:
        raise ConfigError(
            f"hypernetwork: nothing of generate = '{config.generate}' is trained here.",
            fix="train more (model.tune = 'full'), or generate 'all'.",
        )
    return tuple(name for name in layout.order if name in chosen)


def travels(config: AlgorithmConfig, layout: Layout) -> tuple[str, ...]:
    """What is generated, and the rest unless it stays."""
    keys = cast("HypernetworkConfig", config)
    made = generated(keys, layout)
    return made if keys.rest == "stay" else layout.order


class Generating(CoordinatorHalf):
    """Sends each site the weights that its embedding gives, and descends by the vector–Jacobian product of its change.

    It holds the hyper-network four times (weights, momentum, the round's sum, one site's gradient) and, until the next
    step, a generated model for each site. The gradients are added as uploads arrive.

    Args:
        initial: the travelling tensors before round 1.
        layout: tells trained weights, classifier and attention.
        config: the keys.

    Raises:
        ConfigError: the hyper-network would be larger than ``max_parameters``.
    """

    def __init__(self, initial: Tensors, layout: Layout, config: HypernetworkConfig) -> None:
        self._config = config
        self._initial = {name: tensor.clone() for name, tensor in initial.items()}
        made = [name for name in generated(config, layout) if name in initial]
        self._shapes = {name: initial[name].shape for name in made}
        self._averaged = [name for name in initial if name not in self._shapes]
        self._rest = Averaging({name: initial[name] for name in self._averaged}, weighting=config.weighting)
        self._refuse_large()
        self._made: dict[str | None, Tensors] = {}
        self._embeddings: dict[str, nn.Parameter] = {}
        self._sum = RunningMean()
        self._turns: dict[str, tuple[Tensor, float]] = {}
        self._rounds = self._round = 0

    def _refuse_large(self) -> None:
        with torch.device("meta"):
            size = sum(p.numel() for p in self._network(1).parameters())
        if size > self._config.max_parameters:
            targets = sum(shape.numel() for shape in self._shapes.values())
            raise ConfigError(
                f"hypernetwork: head = '{self._config.head}' for {targets:,} generated weights needs {size:,} "
                f"parameters, expected at most max_parameters = {self._config.max_parameters:,}.",
                fix="choose head = 'low-rank' or 'chunked', generate less, or raise max_parameters if there is memory.",
            )

    def _network(self, embedding: int) -> HyperNetwork:
        keys = self._config
        return HyperNetwork(
            self._shapes,
            embedding=embedding,
            hidden=keys.hidden,
            layers=keys.layers,
            head=keys.head,
            rank=keys.rank,
            chunk=keys.chunk,
        )

    # ── set-up ──────────────────────────────────────────────────────────────────────────────────────────────────
    def plan(self, outlook: Outlook) -> None:
        """Draw φ, and an embedding for each site, which depends on the seed and the site's name only.

        Raises:
            ConfigError: ``newcomers`` that do not train, or no rounds for them or for the others.
        """
        keys, self._rounds = self._config, outlook.rounds
        self._check_newcomers(outlook)
        first = self._initial[next(iter(self._shapes))]
        wide = torch.float64 if first.dtype == torch.float64 else torch.float32
        width = keys.embedding or int(1 + len(outlook.sites) / 4)
        stream = torch_stream(outlook.seed, "hypernetwork")
        # Drawn on the processor, so that the same seed gives the same network wherever it is used.
        initial = {name: self._initial[name].to("cpu") for name in self._shapes}
        self._phi = self._network(width).to(wide).draw(initial, stream).to(first.device)
        for site in sorted(outlook.sites):
            drawn = torch.randn(width, generator=torch_stream(outlook.seed, "embedding", site), dtype=wide)
            self._embeddings[site] = nn.Parameter(drawn.to(first.device))
        self._made = {}
        groups: list[dict[str, Any]] = [
            {"params": list(self._phi.parameters())},
            {"params": list(self._embeddings.values()), "lr": keys.embed_lr or keys.lr},
        ]
        self._optimiser = torch.optim.SGD(
            groups,
            lr=keys.lr,
            momentum=keys.momentum,
            weight_decay=keys.weight_decay,
        )

    def _check_newcomers(self, outlook: Outlook) -> None:
        keys, sites = self._config, outlook.sites
        wrong = ""
        if unknown := [site for site in keys.newcomers if site not in sites]:
            wrong = f"newcomers names {', '.join(unknown)}, no training site; there are {', '.join(sites)}"
        elif keys.newcomers and len(set(keys.newcomers)) == len(sites):
            wrong = "newcomers names every training site, so that nobody would train φ"
        elif bool(keys.newcomers) != bool(keys.newcomer_rounds):
            wrong = "newcomers and newcomer_rounds go together, and only one of them is given"
        elif keys.newcomer_rounds >= outlook.rounds:
            wrong = f"newcomer_rounds = {keys.newcomer_rounds} of {outlook.rounds} rounds leaves none to train φ"
        if wrong:
            raise ConfigError(f"hypernetwork: {wrong}.", fix="correct newcomers or newcomer_rounds of this arm.")

    # ── downloads ───────────────────────────────────────────────────────────────────────────────────────────────
    def download(self, site: str) -> Tensors:
        """θ_k, and the mean of the rest."""
        return self._whole(self._of(site))

    def own(self, site: str) -> Tensors:
        """θ_k."""
        return self._of(site) if self._embeddings else {}

    def model(self) -> Tensors:
        """The weights of the mean embedding, and the mean of the rest: what a held-out site uses."""
        return self._whole(self._of(None))

    def _whole(self, made: Tensors) -> Tensors:
        rest = self._rest.model()
        return {name: made[name] if name in made else rest[name] for name in self._initial}

    def _of(self, site: str | None) -> Tensors:
        """Generated weights of a site, made once between two steps; None: of the mean embedding."""
        if not self._embeddings:  # only the sizes are wanted
            return {name: self._initial[name] for name in self._shapes}
        if site in self._config.newcomers and not self._fitting(self._round):
            site = None
        if site not in self._made:
            with torch.no_grad():
                made = self._phi(self._mean() if site is None else self._embeddings[site])
                self._made[site] = {name: t.to(self._initial[name].dtype) for name, t in made.items()}
        return self._made[site]

    def _mean(self) -> Tensor:
        """Mean embedding of the sites that φ is trained with."""
        return torch.stack([v.detach() for s, v in self._embeddings.items() if s not in self._config.newcomers]).mean(0)

    def _fitting(self, round_number: int) -> bool:
        """Whether the newcomers fit in this round and φ stands still."""
        return bool(self._config.newcomers) and round_number > self._rounds - self._config.newcomer_rounds

    # ── a round ─────────────────────────────────────────────────────────────────────────────────────────────────
    @torch.no_grad()
    def begin_round(self, round_number: int, cohort: Iterable[str]) -> None:
        """Forget the last round's sums; in the first round of the newcomers give each the mean embedding."""
        if not self._embeddings:
            raise RuntimeError("plan() must tell the sites first")
        if self._fitting(round_number) and not self._fitting(round_number - 1):
            mean = self._mean()
            for site in self._config.newcomers:
                self._embeddings[site].copy_(mean)
        self._round, self._sum, self._turns = round_number, RunningMean(), {}
        self._rest.begin_round(round_number, cohort)

    def fold(self, upload: Upload) -> None:
        """Add one site's vector–Jacobian product; the rest goes to the mean."""
        fitting, new = self._fitting(self._round), upload.site in self._config.newcomers
        if fitting != new:  # φ must not learn of a newcomer, and stands still while newcomers fit
            return
        weight = upload.weight if self._config.weighting == "images" else 1.0
        by_phi, by_embedding = self.gradient(upload.site, upload.tensors, embedding_only=new)
        self._turns[upload.site] = (by_embedding, weight)
        if not new:
            self._sum.add(by_phi, weight)
            self._rest.fold(replace(upload, tensors={name: upload.tensors[name] for name in self._averaged}))

    def gradient(self, site: str, trained: Tensors, *, embedding_only: bool = False) -> tuple[Tensors, Tensor]:
        """``(∂θ_k / ∂φ)ᵀ Δ_k`` by parameter, {} if only the embedding's is wanted, and ``(∂θ_k / ∂v_k)ᵀ Δ_k``.

        Args:
            site: k.
            trained: θ̃_k.
            embedding_only: leave φ out.
        """
        sent, embedding = self._of(site), self._embeddings[site]
        with torch.no_grad():
            change = [(sent[name] - trained[name]).to(embedding.dtype) for name in self._shapes]
        named = {} if embedding_only else dict(self._phi.named_parameters())
        with torch.enable_grad():
            theta = self._phi(embedding)
            found = torch.autograd.grad(
                [theta[name] for name in self._shapes],
                [embedding, *named.values()],
                grad_outputs=change,
                allow_unused=True,
                materialize_grads=True,
            )
        return dict(zip(named, found[1:], strict=True)), found[0]

    @torch.no_grad()
    def end_round(self) -> None:
        """One step of SGD along the sum; parameters without a gradient stand still, with their momentum."""
        if not self._turns:
            return
        # Σ_k p_k K g_k with Σ_k p_k = 1: for equal weights the plain sum.
        scale = len(self._turns) / sum(weight for _, weight in self._turns.values())
        for site, (found, weight) in self._turns.items():
            self._embeddings[site].grad = found * (weight * scale)
        if not self._sum.empty:
            summed = self._sum.result()
            for name, parameter in self._phi.named_parameters():
                parameter.grad = summed[name].mul_(len(self._turns))
        moved = [p for group in self._optimiser.param_groups for p in group["params"] if p.grad is not None]
        if self._config.clip:
            nn.utils.clip_grad_norm_(moved, self._config.clip)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        if not self._sum.empty:
            self._rest.end_round()
        self._sum, self._turns, self._made = RunningMean(), {}, {}

    # ── checkpoint ──────────────────────────────────────────────────────────────────────────────────────────────
    def state(self) -> Tensors:
        """φ, the embeddings, the optimiser's momentum, and the rest."""
        return {
            **{NETWORK + name: p.detach() for name, p in self._phi.named_parameters()},
            **{EMBEDDING + site: v.detach() for site, v in self._embeddings.items()},
            **{OPTIMISER + name: tensor for name, tensor in export_state(self._optimiser).items()},
            **{REST + name: tensor for name, tensor in self._rest.state().items()},
            ROUND: torch.tensor(self._round),
        }

    @torch.no_grad()
    def load_state(self, tensors: Tensors) -> None:
        """Inverse of :meth:`state`, after :meth:`plan`."""
        for name, parameter in self._phi.named_parameters():
            parameter.copy_(tensors[NETWORK + name])
        for site, embedding in self._embeddings.items():
            embedding.copy_(tensors[EMBEDDING + site])
        import_state(
            self._optimiser,
            {n.removeprefix(OPTIMISER): t for n, t in tensors.items() if n.startswith(OPTIMISER)},
        )
        self._rest.load_state({n.removeprefix(REST): t for n, t in tensors.items() if n.startswith(REST)})
        self._round, self._made = int(tensors[ROUND]), {}


def _coordinator(config: AlgorithmConfig, initial: Tensors, layout: Layout) -> Generating:
    return Generating(initial, layout, cast("HypernetworkConfig", config))


def _newcomer(config: AlgorithmConfig) -> str:
    keys = cast("HypernetworkConfig", config)
    if keys.rest == "average":
        return "the weights of the mean embedding: they take no part, so they cannot fit one of their own"
    if keys.generate == "all":
        return (
            "the weights of the mean embedding, and running statistics re-estimated on the newcomer's own unlabelled "
            "images"
        )
    return ""


def _note(config: AlgorithmConfig, sites: int) -> str:
    keys = cast("HypernetworkConfig", config)
    trained = max(1, sites - len(keys.newcomers))
    step = keys.lr * trained / (1 - keys.momentum)
    text = (
        f"the hyper-network's base takes {step:.2g} of FedAvg's mean change a round once momentum has built up "
        "(lr × sites / (1 − momentum)); below about 0.3 it needs more rounds than FedAvg"
    )
    if keys.newcomers:
        last = f"{keys.newcomer_rounds} rounds" if keys.newcomer_rounds > 1 else "round"
        text += (
            f"; {', '.join(keys.newcomers)} fitted an embedding only, in the last {last}, while all else stood still"
        )
    return text


ALGORITHMS.register("hypernetwork")(
    Algorithm(
        name="hypernetwork",
        title="each site's weights from a hyper-network (pFedHN)",
        paper="Shamsian et al., ICML 2021; for slides Lin et al., Scientific Reports 2023",
        equation="θ_k = h(v_k; φ);  (φ, v_k) ← (φ, v_k) - α Σ_k (∂θ_k / ∂(φ, v_k))ᵀ (θ_k - θ̃_k)",
        config=HypernetworkConfig,
        site=lambda config: PlainSite(),
        coordinator=_coordinator,
        facts=Facts(
            travels="the model, both ways; each site's download is its own",
            stays="images, labels, optimiser state; with rest = stay all that is not generated; at the coordinator "
            "the hyper-network and the embeddings",
            memory="4 hyper-networks, and a generated model for each site",
            cost="1 × local training; at the coordinator a pass through the hyper-network and back for each site",
        ),
        travels=travels,
        newcomer=_newcomer,
        note=_note,
    )
)
