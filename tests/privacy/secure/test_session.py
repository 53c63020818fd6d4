"""A session between parties: the sum, what is given away in it, and who refuses what."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
import pytest

pytest.importorskip("cryptography", reason="the extra 'secure' is not installed")

from morphfed.core.errors import SecureSumError
from morphfed.privacy.secure.assembly import Assembly, readable
from morphfed.privacy.secure.keys import Advert, agree, derive, private_key, seal, unseal
from morphfed.privacy.secure.masks import Stream, apply
from morphfed.privacy.secure.party import Party, Terms
from morphfed.privacy.secure.shamir import combine

NAMES = ("a", "b", "c", "d", "e")
LENGTH = 1000


def vectors_of(number: int) -> list[np.ndarray]:
    rng = np.random.default_rng(number)
    return [rng.integers(0, 2**32, LENGTH, dtype=np.uint32), rng.integers(0, 2**63, 3, dtype=np.uint64)]


class Session:
    """Five parties and a coordinator, step by step; ``gone`` drop out before the step that is named."""

    def __init__(self, *, threshold: int = 3, gone: Mapping[str, Collection[str]] | None = None) -> None:
        gone = {"keys": (), "shares": (), "masked": (), "opened": (), **(gone or {})}
        self.terms = Terms("unit, round 1, session x", NAMES, threshold)
        self.there = [n for n in NAMES if n not in gone["keys"]]
        self.parties = {n: Party(n, self.terms, {"range": i}) for i, n in enumerate(NAMES) if n in self.there}
        self.adverts = {n: p.advert for n, p in self.parties.items()}
        self.total = [np.zeros(LENGTH, dtype=np.uint32), np.zeros(3, dtype=np.uint64)]
        self.assembly = Assembly(self.terms, self.adverts, self.total)
        self._drop(gone["shares"])
        for n in self.there:
            self.assembly.take_shares(n, self.parties[n].share(self.adverts))
        self._drop(gone["masked"])
        self.sent: dict[str, list[np.ndarray]] = {}
        for n in self.there:
            self.sent[n] = vectors_of(NAMES.index(n))
            self.parties[n].mask(self.sent[n], self.assembly.sealed_for(n))
            self.assembly.add(n, self.sent[n])
        self._drop(gone["opened"])

    def _drop(self, names: Collection[str]) -> None:
        self.there = [n for n in self.there if n not in names]

    def open(self) -> list[np.ndarray]:
        survivors = self.assembly.survivors
        self.shares = {n: self.parties[n].open(survivors) for n in self.there}
        self.assembly.open(self.shares)
        return self.total


def expected(names: Collection[str]) -> list[np.ndarray]:
    columns = zip(*(vectors_of(NAMES.index(n)) for n in names), strict=True)
    return [np.sum(np.stack(column), axis=0, dtype=column[0].dtype) for column in columns]


@pytest.mark.parametrize(
    "gone",
    [
        {},
        {"keys": "a"},
        {"shares": "b"},
        {"masked": "c"},
        {"opened": "d"},
        {"keys": "e", "shares": "d"},
        {"masked": "ae"},
        {"keys": "a", "masked": "c"},
        {"shares": "b", "opened": "d"},
        {"masked": "b", "opened": "e"},
    ],
    ids=str,
)
def test_the_sum_of_those_that_stayed_is_exact(gone: dict[str, str]) -> None:
    session = Session(gone=gone)
    found = session.open()
    stayed = [n for n in NAMES if n not in "".join(v for k, v in gone.items() if k != "opened")]
    assert session.assembly.survivors == stayed
    for mine, theirs in zip(found, expected(stayed), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("step", ["keys", "shares", "masked"])
def test_fewer_than_the_threshold_stop_at_the_next_step(step: str) -> None:
    with pytest.raises(SecureSumError, match="2 sites .* fewer than the 3"):
        Session(gone={step: "abc"}).open()


def test_without_enough_answers_the_sum_stays_masked() -> None:
    session = Session(gone={"opened": "abc"})
    masked = session.total[0].copy()
    with pytest.raises(SecureSumError, match="2 sites have answered the last step, fewer than the 3"):
        session.open()
    np.testing.assert_array_equal(session.total[0], masked)
    assert not np.array_equal(masked, expected(NAMES)[0])


def test_nothing_that_the_coordinator_has_before_the_end_tells_of_a_vector() -> None:
    session = Session()
    for n in NAMES:
        assert not np.isin(session.sent[n][0], vectors_of(NAMES.index(n))[0]).mean() > 0.01
    # Even with all pairwise masks (as if all others colluded) the party's own mask is left.
    key = session.parties["a"]._masking
    lifted = [v.copy() for v in session.sent["a"]]
    streams = [
        Stream(derive(agree(key, session.adverts[n].masking, n), "mask of a pair", session.assembly._session), -1)
        for n in "bcde"
    ]
    apply(streams, lifted)
    assert not np.isin(lifted[0], vectors_of(0)[0]).mean() > 0.01
    apply([Stream(derive(session.parties["a"]._seed, "own mask", session.assembly._session), -1)], lifted)
    np.testing.assert_array_equal(lifted[0], vectors_of(0)[0])


def test_a_party_gives_one_kind_of_share_of_each_other() -> None:
    session = Session(gone={"masked": "c"})
    session.open()
    point = {n: session.terms.point(n) for n in NAMES}
    together = {n: {point[h]: int.from_bytes(s[n], "big") for h, s in session.shares.items()} for n in NAMES}
    for n in "abde":
        assert combine(together[n]).to_bytes(32, "big") == session.parties[n]._seed
    assert combine(together["c"]).to_bytes(32, "big") == session.parties["c"]._masking.private_bytes_raw()
    with pytest.raises(SecureSumError, match="taken already"):
        session.parties["a"].open(["a", "b", "c", "d"])


def test_a_coordinator_that_says_different_things_does_not_get_both_secrets() -> None:
    # It tells two parties that e is gone and two that it is not: of neither secret it has three shares.
    session = Session()
    masking = [session.parties[n].open(["a", "b", "c", "d"])["e"] for n in "ab"]
    seed = [session.parties[n].open(list(NAMES))["e"] for n in "cd"]
    for shares, points, secret in (
        (masking, (1, 2), session.parties["e"]._masking.private_bytes_raw()),
        (seed, (3, 4), session.parties["e"]._seed),
    ):
        found = combine(dict(zip(points, (int.from_bytes(s, "big") for s in shares), strict=True)))
        assert found != int.from_bytes(secret, "big")


def test_a_party_that_is_said_to_be_gone_gives_nothing() -> None:
    session = Session()
    with pytest.raises(SecureSumError, match="said to be gone"):
        session.parties["e"].open(["a", "b", "c", "d"])


def test_survivors_that_never_shared_are_refused() -> None:
    session = Session(gone={"shares": "e"})
    with pytest.raises(SecureSumError, match="'e' has shared out no secrets"):
        session.parties["a"].open(list(NAMES))
    with pytest.raises(SecureSumError, match="'z' is no site"):
        session.parties["b"].open(["a", "b", "c", "z"])


def test_a_share_that_was_altered_is_named() -> None:
    session = Session(gone={"masked": "b"})
    party = session.parties["b"]
    sealed = session.assembly.sealed_for("b")
    sealed["d"] = sealed["d"][:-1] + bytes([sealed["d"][-1] ^ 1])
    vectors = vectors_of(1)
    with pytest.raises(SecureSumError, match="the share of 'd' does not open"):
        party.mask(vectors, sealed)
    np.testing.assert_array_equal(vectors[0], vectors_of(1)[0])


def test_parties_that_were_shown_different_keys_do_not_understand_each_other() -> None:
    terms = Terms("x", NAMES, 3)
    parties = {n: Party(n, terms, {}) for n in NAMES}
    adverts = {n: p.advert for n, p in parties.items()}
    mallory = {**adverts, "c": Party("c", terms, {}).advert}  # a key of the coordinator's, shown to a alone
    sealed = {n: parties[n].share(mallory if n == "a" else adverts) for n in NAMES if n != "c"}
    with pytest.raises(SecureSumError, match="the share of 'a' does not open: it was altered, or that site was shown"):
        parties["b"].mask(vectors_of(1), {n: sealed[n]["b"] for n in "ade"})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda adverts: {n: a for n, a in adverts.items() if n in "bcd"}, "its own keys are missing"),
        (lambda adverts: {**adverts, "a": adverts["b"]}, "its own keys are missing"),
        (lambda adverts: {**adverts, "d": adverts["c"]}, "two sites have the same key"),
        (lambda adverts: {**adverts, "z": Party("a", Terms("x", NAMES, 3), {}).advert}, "'z' is no site"),
        (lambda adverts: {n: adverts[n] for n in "ab"}, "2 sites have sent keys"),
    ],
    ids=["missing", "replaced", "twice", "stranger", "few"],
)
def test_keys_that_cannot_be_are_refused(change, why: str) -> None:  # type: ignore[no-untyped-def]
    terms = Terms("x", NAMES, 3)
    parties = {n: Party(n, terms, {}) for n in NAMES}
    with pytest.raises(SecureSumError, match=why):
        parties["a"].share(change({n: p.advert for n, p in parties.items()}))


def test_a_wrong_share_is_found_before_anything_is_opened() -> None:
    session = Session(gone={"masked": "e"})
    shares = {n: session.parties[n].open(session.assembly.survivors) for n in "abcd"}
    for name in ("c", "e"):
        wrong = {n: dict(of) for n, of in shares.items()}
        wrong["a"][name] = (int.from_bytes(wrong["a"][name], "big") ^ 1).to_bytes(66, "big")
        with pytest.raises(SecureSumError, match=f"The secret of '{name}' cannot be put together .* a, b, c"):
            session.assembly.open(wrong)
    session.assembly.open(shares)
    np.testing.assert_array_equal(session.total[0], expected("abcd")[0])


def test_no_key_is_used_twice() -> None:
    first, second = Session(), Session()
    keys = [key for s in (first, second) for advert in s.adverts.values() for key in advert.keys]
    assert len(set(keys)) == len(keys) == 2 * 5 * 3
    assert not np.array_equal(first.sent["a"][0], second.sent["a"][0])


class Signer:
    """Stands for a certificate: a proof is the name and the content themselves."""

    def __init__(self, name: str) -> None:
        self.name = name

    def sign(self, content: bytes) -> dict[str, bytes]:
        return {"signature": self.name.encode() + content}

    def check(self, name: str, content: bytes, proof: Mapping[str, bytes]) -> None:
        if proof.get("signature") != name.encode() + content:
            raise SecureSumError(f"The keys of '{name}' are not signed by it.", fix="-")


def test_keys_that_are_not_signed_by_their_site_are_refused() -> None:
    terms = Terms("x", NAMES, 3)
    parties = {n: Party(n, terms, {"range": 1}, Signer(n)) for n in NAMES}
    adverts = {n: p.advert for n, p in parties.items()}
    forged = Party("c", terms, {"range": 1}, Signer("mallory")).advert
    unsigned = dataclasses.replace(adverts["c"], proof={})
    claims = dataclasses.replace(adverts["c"], claims={"range": 9})
    other = Party("c", Terms("another session", NAMES, 3), {"range": 1}, Signer("c")).advert
    for wrong in (forged, unsigned, claims, other):
        with pytest.raises(SecureSumError, match="keys of 'c' are not signed"):
            _share(terms, adverts, wrong)
    assert set(parties["a"].share(adverts)) == set("bcde")


def _share(terms: Terms, adverts: dict[str, Advert], wrong: Advert) -> None:
    own = Party("a", terms, {"range": 1}, Signer("a"))
    own.share({**adverts, "a": own.advert, "c": wrong})


def test_what_is_no_advert_is_refused() -> None:
    good = Party("a", Terms("x", NAMES, 3), {"range": -3}).advert
    assert Advert.read(good.plain()) == good
    plain = good.plain()
    for wrong in (
        None,
        [],
        {},
        {**plain, "sealing": "zz"},
        {**plain, "sealing": plain["sealing"][:-2]},
        {**plain, "masking": 3},
        {**plain, "claims": {"range": True}},
        {**plain, "claims": {"range": 1.5}},
        {**plain, "claims": {"range": 1 << 20}},
        {**plain, "proof": 1},
    ):
        with pytest.raises(ValueError, match="advert|bytes each|whole numbers"):
            Advert.read(wrong)


def test_what_is_no_share_is_refused() -> None:
    session = Session()
    good = session.parties["a"].open(list(NAMES))
    assert readable(good, NAMES)
    assert not readable({n: good[n] for n in "abcd"}, NAMES)
    assert not readable({**good, "a": good["a"][:-1]}, NAMES)
    assert not readable({**good, "a": b"\xff" * 66}, NAMES)
    with pytest.raises(ValueError, match="one sealed share"):
        session.assembly.take_shares("a", {"b": b""})


def test_sealing_is_authenticated() -> None:
    sealed = seal(b"k" * 32, b"text", b"about")
    assert unseal(b"k" * 32, sealed, b"about") == b"text"
    assert unseal(b"k" * 32, sealed, b"other") is None
    assert unseal(b"j" * 32, sealed, b"about") is None
    assert unseal(b"k" * 32, b"", b"about") is None
    assert sealed != seal(b"k" * 32, b"text", b"about")


def test_a_public_key_of_small_order_is_refused() -> None:
    with pytest.raises(SecureSumError, match="public key of 'b' is none"):
        agree(private_key(b"k" * 32), bytes(32), "b")
