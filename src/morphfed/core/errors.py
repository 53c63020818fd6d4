"""One tree of errors. Each says what is wrong, where, and what to do next.

The command line prints ``error CODE: message`` and ``fix: …`` and leaves with ``exit_code``; a traceback
appears only with ``--debug``. Codes are stable: scripts and the documentation may rely on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class MorphfedError(Exception):
    """Base of all errors that a user can mend.

    Args:
        message: one sentence that names the site, file, row or key and what was expected.
        fix: one sentence, what to do next.
    """

    code = "MF000"
    exit_code = 1

    def __init__(self, message: str, *, fix: str) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} Fix: {self.fix}"

    def __reduce__(self) -> tuple[object, ...]:
        # `fix` is keyword-only, which the default pickling (worker → parent process) cannot restore.
        return (_rebuild, (type(self), self.message, self.fix))


def _rebuild(kind: type[MorphfedError], message: str, fix: str) -> MorphfedError:
    return kind(message, fix=fix)


class ConfigError(MorphfedError):
    """A study file, key or value that cannot be used."""

    code = "MF010"
    exit_code = 2


class DataError(MorphfedError):
    """A manifest, folder or image that cannot be used."""

    code = "MF020"
    exit_code = 3


class ModelError(MorphfedError):
    """A backbone or weights file that cannot be used."""

    code = "MF030"
    exit_code = 4


class TrainingError(MorphfedError):
    """Training that cannot go on (a loss that is not finite)."""

    code = "MF040"
    exit_code = 5


class FederationError(MorphfedError):
    """A round that cannot be completed (quorum lost)."""

    code = "MF050"
    exit_code = 6


class UploadRejectedError(FederationError):
    """One site's upload that fails validation; the round may go on without it."""

    code = "MF051"


class LinkError(FederationError):
    """The coordinator cannot be reached, or does not let this machine in."""

    code = "MF052"


class StorageError(MorphfedError):
    """A folder that cannot be written or a file that cannot be read back (disk full, read-only, damaged)."""

    code = "MF060"
    exit_code = 7


class MissingExtraError(MorphfedError):
    """A feature whose optional dependency is not installed."""

    code = "MF070"
    exit_code = 8


class PrivacyError(MorphfedError):
    """Something tried to leave a site that is not on the allow-list."""

    code = "MF080"
    exit_code = 9


class ConsentError(PrivacyError):
    """A site was asked to take part in a study that its operator has not approved."""

    code = "MF081"


class SecureSumError(PrivacyError):
    """A secure sum that a site refuses to go on with, or that cannot be opened; no single upload was seen."""

    code = "MF082"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest of ``known``, or the empty string."""
    options = {str(k).casefold(): str(k) for k in known}
    close = get_close_matches(word.casefold(), list(options), n=1, cutoff=0.6)
    return f" Did you mean '{options[close[0]]}'?" if close else ""
