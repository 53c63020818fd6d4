"""Status documents of a federation of four sites in every state."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from morphfed.deploy.status import Failure, Line, SiteStatus, Status, UnitLine, UnitStatus

NOW = datetime.now(UTC).replace(microsecond=0)


def ago(**parts: float) -> datetime:
    return NOW - timedelta(**parts)


def site(name: str, state: Any, offset: float, **told: Any) -> SiteStatus:
    scores = tuple(round(0.52 + offset + 0.35 * (1 - 0.72**n), 4) for n in range(1, 8))
    losses = tuple(round(1.9 * 0.78**n - offset, 4) for n in range(1, 8))
    known = {
        "since": ago(minutes=2),
        "seen": NOW,
        "loss": losses[-1],
        "losses": losses,
        "scores": scores,
        "validation": {"balanced_accuracy": scores[-1], "loss": 0.61},
        "bytes_down": 98_493_760,
        "bytes_up": 137_891_264,
        "ledger": "5f0c" * 16,
    }
    return SiteStatus(name=name, state=state, **(known | told))


def running(**told: Any) -> Status:
    gap = site("quito", "away", -0.05)
    sites = (
        site("kampala", "working", 0.02, until=NOW + timedelta(minutes=48)),
        site("lagos", "connected", 0.05, answered=True),
        site("oslo", "late", -0.02, since=ago(minutes=11), until=NOW + timedelta(minutes=48)),
        gap.model_copy(
            update={
                "seen": ago(minutes=9),
                "since": ago(minutes=9),
                "until": NOW + timedelta(minutes=2),
                "missed": 2,
                "scores": (*gap.scores[:3], None, None, *gap.scores[5:]),
                "losses": (*gap.losses[:3], None, None, *gap.losses[5:]),
            }
        ),
    )
    known: dict[str, Any] = {
        "federation": "four-labs",
        "study": "four-labs",
        "study_hash": "5f0c1a2b3c4d5e6f" * 4,
        "morphfed": "0.1.0",
        "pid": os.getpid(),
        "started": ago(hours=3),
        "written": NOW,
        "doing": "round 8",
        "units": tuple(
            UnitLine(
                key=f"{arm}/all/seed-{seed}",
                done=arm == "fedavg",
                best_round=17 if arm == "fedavg" else None,
                best_score=0.842 + seed / 100 if arm == "fedavg" else None,
            )
            for arm in ("fedavg", "fedprox")
            for seed in (0, 1)
        ),
        "unit": UnitStatus(
            key="fedprox/all/seed-0",
            arm="fedprox",
            seed=0,
            number=3,
            round=7,
            rounds=20,
            metric="balanced_accuracy",
            best_round=7,
            best_score=0.8312,
            seconds=7 * 312.0,
            seconds_left=13 * 312.0,
            bytes_down=551_565_056,
            bytes_up=512_167_552,
            epsilon=2.314,
            delta=1e-5,
        ),
        "sites": sites,
        "lines": (
            Line(time=ago(minutes=9), level="warning", text="round 7: Site 'quito': not connected, last seen 13:31."),
            Line(
                time=ago(minutes=1), level="info", text="round 8: 1 of 4 sites back, waiting for kampala; oslo; quito"
            ),
        ),
    }
    return Status(**(known | told))


def done() -> Status:
    every = tuple(UnitLine(key=u.key, done=True, best_round=14, best_score=0.861) for u in running().units)
    unit = running().unit
    assert unit is not None
    full = tuple(
        s.model_copy(update={"state": "connected", "until": None, "why": "", "missed": s.missed})
        for s in running().sites
    )
    last = unit.model_copy(update={"key": every[-1].key, "number": 4, "seed": 1, "round": 20, "seconds_left": 0.0})
    return running(ended="done", exit_code=0, doing="", units=every, unit=last, sites=full)


def failed() -> Status:
    why = (
        "it refuses: the study 5f0c1a2b3c4d is not approved. Fix, at the site: read it with `morphfed site review "
        "STUDY`, then `morphfed site approve STUDY`"
    )
    sites = tuple(
        s.model_copy(update={"until": None, **({"state": "refused", "why": why} if s.name == "kampala" else {})})
        for s in running().sites
    )
    failure = Failure(
        code="MF050",
        message="Round 8: 1 of 4 sites gave a valid upload, 2 are needed. Site 'kampala': " + why + ".",
        fix="mend what is said of those sites, or lower federation.quorum; the rounds before are saved.",
    )
    return running(ended="failed", exit_code=6, doing="", sites=sites, failure=failure)


def stopped() -> Status:
    return running(ended="stopped", exit_code=130, doing="")
