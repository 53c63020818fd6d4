"""What a study is made of, in its own word: sections are written for images, and a study of bags says bags."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

T = TypeVar("T")

KEPT = frozenset({"key", "href", "source", "path", "kind"})
"""Fields of blocks that are no words."""

# Not inside an address (data:image/png) or a tag (<image …>), and not as part of a longer word.
_WORD = re.compile(r"(?<![\w<:/-])(an? )?(images?)(?![\w/-])", re.IGNORECASE)


def says(thing: str, names: Sequence[str] = ()) -> Callable[[T], T]:
    """A function that puts ``thing`` in the place of ``image`` in all words of a block, a section or a summary.

    Args:
        thing: in the singular, beginning with a consonant.
        names: texts that are names of the study's own, such as its sites; a cell that is one stays as it is.
    """
    known = frozenset(names)

    def word(found: re.Match[str]) -> str:
        article, noun = found[1] or "", found[2]
        said = thing + ("s" if noun.lower().endswith("s") else "")
        said = said.capitalize() if noun[0].isupper() else said
        return ("A " if article.startswith("A") else "a " if article else "") + said

    def put(value: Any) -> Any:
        if isinstance(value, str):
            return value if value in known else _WORD.sub(word, value)
        if isinstance(value, tuple):
            return tuple(put(item) for item in value)
        if isinstance(value, list):
            return [put(item) for item in value]
        if is_dataclass(value) and not isinstance(value, type):
            changed = {f.name: put(getattr(value, f.name)) for f in fields(value) if f.name not in KEPT and f.init}
            return replace(value, **changed)
        return value

    return put
