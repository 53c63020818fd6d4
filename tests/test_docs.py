"""The documentation is run: Python and console blocks, TOML, links.

In README.md and docs/**/*.md every ```python block is executed, the blocks of a page one after the other
in one namespace and one folder that holds a copy of examples/ and nothing else. Of every ```console block the
lines that start with ``$ morphfed`` are executed and must succeed. A block that cannot be run here is
preceded by a line ``<!-- not run: the reason -->``; these are printed and counted.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
SECONDS = 240
_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<language>[\w+-]*)")
_NOT_RUN = re.compile(r"<!--\s*not run:\s*(?P<reason>.*?)\s*-->")
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?(?P<target>[^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_IMAGE = re.compile(r"<(?:img|a)\b[^>]*?(?:src|href)=\"(?P<target>[^\"]+)\"")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int
    """Of the first line inside the block, from 1."""
    reason: str | None
    """Why it is not run; None: it is."""


def blocks(text: str) -> list[Block]:
    found: list[Block] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        opened = _FENCE.match(lines[number])
        if not opened:
            number += 1
            continue
        before = next((li for li in reversed(lines[:number]) if li.strip()), "")
        marked = _NOT_RUN.search(before)
        start = number + 1
        end = start
        while end < len(lines) and lines[end].strip() != opened["fence"]:
            end += 1
        indent = len(opened["indent"])
        inside = "\n".join(li[indent:] for li in lines[start:end])
        found.append(Block(opened["language"].lower(), inside, start + 1, marked["reason"] if marked else None))
        number = end + 1
    return found


def commands(text: str) -> tuple[list[str], int]:
    """The `$ morphfed …` lines of a console block, continued lines joined, and how many others there are."""
    prompts = [li[2:].strip() for li in re.sub(r"\\\n\s*(?:> )?", "", text).splitlines() if li.startswith("$ ")]
    ours = [p for p in prompts if p.split()[:1] == ["morphfed"]]
    return ours, len(prompts) - len(ours)


def page_id(page: Path) -> str:
    return page.relative_to(PROJECT).as_posix()


def run_command(command: str, folder: Path) -> None:
    program = Path(sys.executable).parent / "morphfed"
    path = os.pathsep.join([str(program.parent), os.environ.get("PATH", "")])
    words = shlex.split(command, comments=True)
    done = subprocess.run(
        [str(program), *words[1:]],
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    told = (done.stdout + done.stderr)[-2000:]
    assert done.returncode == 0, f"$ {command}\nexit code {done.returncode}\n{told}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_and_console_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if (PROJECT / "examples").is_dir():
        shutil.copytree(PROJECT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    # A module, so that dataclasses and pickling inside the blocks find their home.
    module = types.ModuleType("morphfed_docs_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    ran, told = 0, []
    for block in blocks(page.read_text(encoding="utf-8")):
        where = f"{page_id(page)}:{block.line}"
        if block.language not in ("python", "console"):
            continue
        if block.reason is not None:
            told.append(f"not run: {where}: {block.reason}")
            assert block.reason, f"{where}: say why the block is not run"
        elif block.language == "python":
            # Blank lines before it, so that a traceback names the line of the page.
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), vars(module))
            ran += 1
        else:
            ours, others = commands(block.text)
            for command in ours:
                run_command(command, tmp_path)
            ran += len(ours)
            told += [f"not run: {where}: {others} commands of other programs"] if others else []
    with capsys.disabled():
        for line in told:
            print(f"\n  {line}", end="")
        if told:
            print(f"\n  {page_id(page)}: {ran} run, {len(told)} not run")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_toml_blocks_parse(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language == "toml":
            try:
                tomllib.loads(block.text)
            except tomllib.TOMLDecodeError as cause:
                raise AssertionError(f"{page_id(page)}:{block.line}: {cause}") from cause


def prose(text: str) -> str:
    """The page without its code blocks and code spans, where brackets mean something else."""
    kept, fence = [], ""
    for line in text.splitlines():
        opened = _FENCE.match(line)
        if fence:
            fence = "" if line.strip() == fence else fence
        elif opened:
            fence = opened["fence"]
        else:
            kept.append(line)
    return re.sub(r"(`+)[^`]*?\1", "", "\n".join(kept))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    found: dict[str, int] = {}
    result = set()
    for heading in re.findall(r"^#{1,6}\s+(.*?)\s*#*\s*$", "\n".join(plain_lines(text)), flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")
        result.add(slug if slug not in found else f"{slug}-{found[slug]}")
        found[slug] = found.get(slug, 0) + 1
    return result | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))


def plain_lines(text: str) -> list[str]:
    inside = {n for b in blocks(text) for n in range(b.line - 1, b.line + len(b.text.splitlines()))}
    return [li for n, li in enumerate(text.splitlines()) if n not in inside]


def broken_links(page: Path, text: str) -> list[str]:
    wrong = []
    for match in [*_LINK.finditer(prose(text)), *_IMAGE.finditer(prose(text))]:
        target = match["target"]
        if re.match(r"[a-z][a-z0-9+.-]*:", target):  # another site: not looked up, tests need no network
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            wrong.append(f"{target}: no such file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
            wrong.append(f"{target}: no such heading")
    return wrong


@pytest.mark.parametrize("page", [*PAGES, PROJECT / "CONTRIBUTING.md", PROJECT / "CHANGELOG.md"], ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = broken_links(page, page.read_text(encoding="utf-8"))
    assert not wrong, f"{page_id(page)}: {wrong}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, todo = set(), [PROJECT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md" or not page.is_file():
            continue
        seen.add(page)
        for match in _LINK.finditer(prose(page.read_text(encoding="utf-8"))):
            target = match["target"].partition("#")[0]
            if target and ":" not in target:
                linked = (page.parent / target).resolve()
                todo += [*linked.rglob("*.md")] if linked.is_dir() else [linked]
    lost = [page_id(p) for p in PAGES if p not in seen]
    assert not lost, f"no link leads to {lost}"


# The reader of the pages is itself tested: what it overlooks would never be run.
PAGE = """\
# A `heading` with µ, twice
```python
x = 1
```
# A `heading` with µ, twice

<!-- not run: needs an hour -->
```console
$ morphfed run a.toml \\
    train.lr=0.1
```
1. in a list
   ```console
   $ morphfed doctor   # fast
   PASS
   $ make test
   ```
````markdown
```python
raise RuntimeError("inside another block")
```
````
[good](#a-heading-with-µ-twice-1) [bad](#nowhere) [gone](gone.md) [web](https://example.org) `[no](link)`
"""


def test_blocks_are_found() -> None:
    found = blocks(PAGE)
    assert [(b.language, b.line, b.reason) for b in found] == [
        ("python", 3, None),
        ("console", 9, "needs an hour"),
        ("console", 14, None),
        ("markdown", 19, None),
    ]
    assert found[0].text == "x = 1"
    assert commands(found[1].text) == (["morphfed run a.toml train.lr=0.1"], 0)
    assert commands(found[2].text) == (["morphfed doctor   # fast"], 1)


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    assert broken_links(page, PAGE) == ["#nowhere: no such heading", "gone.md: no such file"]


def test_a_command_that_fails_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="exit code"):
        run_command("morphfed no-such-command", tmp_path)
