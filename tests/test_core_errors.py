"""Errors that cross a process boundary and come out as they went in."""

from __future__ import annotations

import multiprocessing
import pickle
import traceback
from concurrent.futures import ProcessPoolExecutor

import pytest

from morphfed.core import errors
from morphfed.core.errors import MorphfedError, TrainingError, UploadRejectedError, did_you_mean

ALL = sorted(
    {
        c
        for c in vars(errors).values()
        if isinstance(c, type) and issubclass(c, MorphfedError) and c is not MorphfedError
    },
    key=lambda c: c.__name__,
)


def _fail(site: str) -> None:
    raise UploadRejectedError(f"Site '{site}' sent a NaN.", fix="look at its images.")


@pytest.mark.parametrize("kind", ALL, ids=lambda c: c.__name__)
def test_pickle_keeps_kind_message_and_fix(kind: type[MorphfedError]) -> None:
    restored = pickle.loads(pickle.dumps(kind("What is wrong.", fix="What to do.")))
    assert type(restored) is kind
    assert (restored.message, restored.fix) == ("What is wrong.", "What to do.")
    assert str(restored) == "What is wrong. Fix: What to do."


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_worker_process_hands_its_error_to_the_parent(method: str) -> None:
    context = multiprocessing.get_context(method)
    with (
        ProcessPoolExecutor(1, mp_context=context) as pool,
        pytest.raises(UploadRejectedError, match="Site 'kampala' sent a NaN") as caught,
    ):
        pool.submit(_fail, "kampala").result(timeout=60)
    assert caught.value.fix == "look at its images."
    assert "in _fail" in "".join(traceback.format_exception(caught.value))  # where it happened is not lost


def test_codes_are_unique_and_exit_codes_are_no_signal_and_no_success() -> None:
    codes = [c.code for c in ALL]
    assert len(set(codes)) == len(codes)
    for kind in ALL:
        assert kind.code.startswith("MF")
        assert 1 < kind.exit_code < 64
    # Same family, same exit code: a script that tells families apart keeps working when a family grows.
    assert UploadRejectedError.exit_code == errors.FederationError.exit_code


def test_fix_cannot_be_forgotten() -> None:
    with pytest.raises(TypeError, match="fix"):
        TrainingError("The loss is NaN.")  # type: ignore[call-arg]


def test_a_cause_is_kept() -> None:
    with pytest.raises(TrainingError) as caught:  # noqa: PT012
        try:
            raise FloatingPointError("overflow")
        except FloatingPointError as cause:
            raise TrainingError("The loss is not finite.", fix="lower the learning rate.") from cause
    assert isinstance(caught.value.__cause__, FloatingPointError)


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("fedporx", ["fedavg", "fedprox"], " Did you mean 'fedprox'?"),
        ("FEDAVG", ["fedavg"], " Did you mean 'fedavg'?"),
        ("Macro-F1", ["macro_f1", "ece"], " Did you mean 'macro_f1'?"),
        ("neutrophyl", ["Neutrophil"], " Did you mean 'Neutrophil'?"),
        ("zzzz", ["fedavg", "fedprox"], ""),
        ("x", [], ""),
        ("", ["fedavg"], ""),
    ],
)
def test_nearest_known_word(word: str, known: list[str], expected: str) -> None:
    assert did_you_mean(word, known) == expected
