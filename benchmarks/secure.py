"""What sums under masks cost beside plain FedAvg: one round of made-up uploads, processor time.

Plain: each upload is looked through and folded in. Secure: each site measures its upload, makes keys, masks and shares;
the coordinator adds the masked uploads up, puts the secrets together and lifts the masks. Both through the code of the
rounds, without network and without training; the digest of the download, which each end makes, is in it.

    python benchmarks/secure.py [--quick] [--repeats 3]
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch

from _memory import forget_peak, peak, resident
from _table import MIB, Options, Row, ratios, run, spread
from morphfed.algorithms.mean import Averaging
from morphfed.core.errors import FederationError
from morphfed.core.types import Failure, Spec, Tensors, Upload
from morphfed.federation.secure.member import Member
from morphfed.federation.secure.plan import Plan, of_round
from morphfed.federation.secure.total import SecureSums
from morphfed.federation.transports.base import Note
from morphfed.federation.validate import check_upload
from morphfed.privacy.egress import Declaration, EgressGate
from morphfed.privacy.secure.config import SecureConfig

SITES = (3, 10)
REPEATS = 3
NUMBERS = {"loss": 1.0, "steps": 10.0, "images": 100.0}


class Sites:
    """Sites whose training gives the same change each time.

    Args:
        names: of the sites.
        change: of the weights.
        gone: sites that do not answer once they have shared out their secrets.
    """

    def __init__(self, names: tuple[str, ...], change: Tensors, plan: Plan, gone: Collection[str] = ()) -> None:
        declared = Declaration({}, frozenset(), "benchmark", masked=plan.declared)
        self._members = {name: Member(name, plan, EgressGate(name, declared, None)) for name in names}
        self._change, self._gone = change, gone
        self.seconds = 0.0
        """Processor time of all sites."""

    def exchange(
        self,
        step: str,
        round_number: int,
        rounds: int,
        asked: Mapping[str, Mapping[str, Any]],
        downloads: Mapping[str, Tensors],
    ) -> Iterator[Note | Failure]:
        """One step."""
        for name, question in asked.items():
            if step == "masked" and name in self._gone:
                yield Failure(name, round_number, "gone")
                continue
            start = time.process_time()
            rest = {key: value for key, value in question.items() if key != "session"}
            session, member = str(question["session"]), self._members[name]
            if step == "keys":
                upload = Upload(name, round_number, self._change, 100.0, NUMBERS)
                what = of_round(round_number, downloads[name])
                note = member.keys(session, what, upload, downloads[name], noise=None)
            else:
                note = member.answer(step, session, rest)
            self.seconds += time.process_time() - start
            yield note


def plain(names: tuple[str, ...], initial: Tensors, change: Tensors) -> float:
    """Seconds of the coordinator; the sites have nothing to do."""
    specs = {name: Spec.of(tensor) for name, tensor in initial.items()}
    rule = Averaging(initial, weighting="images")
    rule.begin_round(1, names)
    start = time.process_time()
    for name in names:
        upload = Upload(name, 1, change, 100.0, NUMBERS)
        check_upload(upload, site=name, round_number=1, specs=specs)
        rule.fold(upload)
    rule.end_round()
    return time.process_time() - start


def secure(
    sums: SecureSums, names: tuple[str, ...], initial: Tensors, change: Tensors, gone: int
) -> tuple[float, float]:
    """Seconds of the coordinator, and of one site."""
    sites = Sites(names, change, sums.plan, names[:gone])
    rule = Averaging(initial, weighting="images")
    rule.begin_round(1, names)
    downloads = dict.fromkeys(names, rule.model())

    def enough(left: int, done: str) -> None:
        if left < sums.plan.threshold:
            raise FederationError(f"{left} sites {done}.", fix="-")

    start = time.process_time()
    total = sums.of_round(sites, 1, 1, downloads, downloads, refused=lambda *_: None, enough=enough)  # type: ignore[arg-type]
    rule.fold_mean(total.mean, total.weight, total.sites)
    rule.end_round()
    spent = time.process_time() - start - sites.seconds
    worst = max(float((rule.model()[name] - change[name]).abs().max()) for name in change)
    assert worst <= max(total.error.values()) + 1e-6, worst
    return spent, sites.seconds / len(names)


def rows(options: Options) -> Iterator[Row]:
    from _engine import large_model, small_model, travelling

    torch.set_num_threads(1)
    initial = travelling(small_model() if options.quick else large_model())
    draw = torch.Generator().manual_seed(0)
    change = {name: t + 1e-3 * torch.randn(t.shape, generator=draw) for name, t in initial.items()}
    specs = {name: Spec.of(tensor) for name, tensor in initial.items()}
    megabytes = sum(spec.nbytes for spec in specs.values()) / 1e6
    for count in (3,) if options.quick else SITES:
        names = tuple(f"site-{i}" for i in range(count))
        everything = frozenset(specs)
        plan = Plan("unit", names, SecureConfig(on=True), "images", specs, everything, everything)
        sums = SecureSums(plan)
        for gone in (0, 1):
            sides: list[list[float]] = [[], [], []]
            for _ in range((1 if options.quick else min(options.repeats, REPEATS)) + 1):
                forget_peak()
                before = resident()
                coordinator, site = secure(sums, names, initial, change, gone)
                memory = (peak() - before) / MIB
                for side, seconds in zip(sides, (coordinator, site, plain(names, initial, change)), strict=True):
                    side.append(seconds)
            coordinator, site, flat = (side[1:] for side in sides)  # the first turn touches new memory
            yield Row(
                f"a round of {count} sites with {megabytes:.3g} MB each"
                + (", one gone before it uploads" if gone else ""),
                f"coordinator {spread(coordinator, 's')}, each site {spread(site, 's')}; {memory:,.0f} MiB, all sites' "
                f"uploads in this process; {plan.nbytes / 1e6:.3g} MB up a site",
                f"plain FedAvg: coordinator {spread(flat, 's')}, sites nothing; {megabytes:.3g} MB up",
                f"{spread(ratios(coordinator, flat))} × at the coordinator",
                note="Processor time, one thread.",
            )


if __name__ == "__main__":
    run(rows, __doc__)
