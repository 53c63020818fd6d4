"""What a user installs: versions, constraints, extras, the set-up script; nothing of one machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import morphfed

PROJECT = Path(__file__).resolve().parents[1]
PROJECT_TABLE = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BASE = [Requirement(r) for r in PROJECT_TABLE["dependencies"]]
EXTRAS = {extra: [Requirement(r) for r in rs] for extra, rs in PROJECT_TABLE["optional-dependencies"].items()}
CONSTRAINTS = {
    r.name: r
    for line in (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if (text := line.partition("#")[0].strip())
    for r in [Requirement(text)]
}
# Where the distribution and the module differ in name.
MODULES = {"openslide-python": "openslide", "openslide-bin": "openslide_bin", "import-linter": "importlinter"}


def test_one_version_everywhere() -> None:
    assert PROJECT_TABLE["version"] == morphfed.__version__ == version("morphfed")
    headings = re.findall(r"^## \[(.+?)\]", (PROJECT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == "Unreleased"
    released = [Version(h) for h in headings[1:]]
    assert released == sorted(released, reverse=True)
    assert all(v <= Version(morphfed.__version__) for v in released)


def test_the_package_says_that_it_is_typed() -> None:
    assert "Typing :: Typed" in PROJECT_TABLE["classifiers"]
    assert (PROJECT / "src/morphfed/py.typed").is_file()


def test_constraints_bound_every_dependency_and_nothing_else() -> None:
    needed = {r.name for r in [*BASE, *(r for rs in EXTRAS.values() for r in rs)]}
    assert set(CONSTRAINTS) == needed
    for name, bound in CONSTRAINTS.items():
        assert bound.url is None
        operators = {s.operator for s in bound.specifier}
        assert operators == {"<"}, f"{name}: constraints.txt holds upper bounds; lower ones are pyproject.toml's"


def test_what_is_installed_lies_within_the_constraints() -> None:
    """Else the tests would say nothing about what `make` installs."""
    for requirement in [*BASE, *EXTRAS["dev"]]:
        installed = version(requirement.name)
        for rule in (requirement, CONSTRAINTS[requirement.name]):
            assert rule.specifier.contains(installed, prereleases=True), f"{installed} is not {rule}"


@pytest.mark.parametrize(("torch", "torchvision"), [("2.6.0", "0.21.0"), ("2.11.0", "0.26.0"), ("2.15.0", "0.29.2")])
def test_constraints_admit_the_pairs_that_are_promised(torch: str, torchvision: str) -> None:
    base = {r.name: r for r in BASE}
    for name, wanted in (("torch", torch), ("torchvision", torchvision)):
        assert base[name].specifier.contains(wanted)
        assert CONSTRAINTS[name].specifier.contains(wanted)


def test_every_python_that_is_promised_is_tested() -> None:
    promised = {c.rpartition(" ")[2] for c in PROJECT_TABLE["classifiers"] if re.search(r"Python :: 3\.\d", c)}
    workflow = (PROJECT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    tested = set(re.findall(r'"(3\.\d+)"', workflow))
    assert tested == promised == {"3.11", "3.12", "3.13"}


NETWORK = "morphfed.federation.transports.flower"
"""The one package that is an adapter of a library, and says so when that is missing."""


def test_the_base_package_imports_without_any_extra() -> None:
    """Every module of morphfed, with every optional library made impossible to import."""
    optional = {MODULES.get(r.name, r.name.replace("-", "_")) for rs in EXTRAS.values() for r in rs}
    program = (
        "import importlib, pkgutil, sys\n"
        f"sys.modules.update(dict.fromkeys({sorted(optional)!r}))\n"
        "import morphfed\n"
        "from morphfed.core.errors import MissingExtraError\n"
        "for module in pkgutil.walk_packages(morphfed.__path__, 'morphfed.', onerror=lambda name: None):\n"
        "    try:\n"
        "        importlib.import_module(module.name)\n"
        "        print(module.name)\n"
        "    except MissingExtraError:\n"
        "        print('refused', module.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
    assert "morphfed.core.errors" in done.stdout.splitlines()
    assert [line for line in done.stdout.splitlines() if line.startswith("refused")] == [f"refused {NETWORK}"]


# ---- the set-up script

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="the set-up script needs bash")


def fake_bin(folder: Path, **programs: str) -> dict[str, str]:
    """A PATH on which only these programs and a few of the system's are to be found."""
    folder.mkdir()
    for tool in ("bash", "dirname", "env", "rm", "touch", "mkdir"):
        (folder / tool).symlink_to(shutil.which(tool) or tool)
    for name, script in programs.items():
        (folder / name.replace("_", ".")).write_text(f"#!{shutil.which('bash')}\n{script}\n", encoding="utf-8")
        (folder / name.replace("_", ".")).chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHON"}
    return {**environment, "PATH": str(folder)}


def python_of(release: str) -> str:
    """An interpreter that answers the script's two questions as that release would."""
    pretend = f"import sys; sys.version_info = ({release.replace('.', ', ')}); "
    return (
        f'case "$*" in *platform*) echo {release};; '
        f'*version_info*) exec "{sys.executable}" -c "{pretend}${{@: -1}}";; '
        '*) echo "called: $*"; exit 1;; esac'
    )


def set_up(folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    clone = folder / "a clone with spaces"
    (clone / "scripts").mkdir(parents=True)
    shutil.copy2(PROJECT / "scripts/setup", clone / "scripts/setup")
    bash = shutil.which("bash") or "bash"
    return subprocess.run(
        [bash, str(clone / "scripts/setup")], env=environment, capture_output=True, text=True, check=False
    )


@needs_bash
@pytest.mark.parametrize("release", ["3.9.2", "3.10.14", "3.14.0"])
def test_setup_refuses_another_python(tmp_path: Path, release: str) -> None:
    done = set_up(tmp_path, fake_bin(tmp_path / "bin", python3=python_of(release)))
    assert done.returncode == 1
    assert f"no Python 3.11, 3.12 or 3.13 found; seen: python3 ({release})" in done.stderr
    assert "fix: install one of them, or name it" in done.stderr


@needs_bash
def test_setup_without_any_python_and_with_a_shim_that_does_not_start(tmp_path: Path) -> None:
    shim = "echo 'no version is selected' >&2; exit 127"
    done = set_up(tmp_path, fake_bin(tmp_path / "bin", python3_13=shim))
    assert done.returncode == 1
    assert "seen: python3.13 (does not start)" in done.stderr
    done = set_up(tmp_path / "other", fake_bin(tmp_path / "empty"))
    assert "seen: none" in done.stderr


@needs_bash
def test_setup_refuses_an_interpreter_that_was_named_and_does_not_suit(tmp_path: Path) -> None:
    environment = fake_bin(tmp_path / "bin", python3=python_of("3.12.1"), old=python_of("3.8.10"))
    done = set_up(tmp_path, {**environment, "PYTHON": "old"})
    assert done.returncode == 1
    assert "PYTHON=old is not Python 3.11, 3.12 or 3.13 (3.8.10)" in done.stderr


@needs_bash
def test_setup_takes_the_newest_that_suits_and_says_what_venv_lacks(tmp_path: Path) -> None:
    programs = {
        "python3": python_of("3.10.1"),
        "python3_12": python_of("3.12.1"),
        "python3_11": python_of("3.11.9"),
    }
    done = set_up(tmp_path, fake_bin(tmp_path / "bin", **programs))
    assert "making .venv with python3.12 (3.12.1)" in done.stderr
    assert "python3.12 cannot make a virtual environment" in done.stderr  # the fake one has no venv module
    assert "python3-venv" in done.stderr
    assert done.returncode == 1


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_help_lists_every_target() -> None:
    done = subprocess.run(["make"], cwd=PROJECT, capture_output=True, text=True, check=True)
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    assert phony is not None
    assert re.findall(r"^  make (\S+)", done.stdout, flags=re.MULTILINE) == phony[1].split()


@pytest.mark.parametrize("script", [".ci/run", "scripts/setup", "scripts/bench"])
def test_scripts_can_be_executed_and_stop_at_the_first_error(script: str) -> None:
    assert os.access(PROJECT / script, os.X_OK)
    assert "set -euo pipefail" in (PROJECT / script).read_text(encoding="utf-8")


# ---- what must not be in the tree


def tracked() -> list[Path]:
    git = shutil.which("git")
    if git is None or not (PROJECT / ".git").exists():
        return [p for p in PROJECT.joinpath("src").rglob("*") if p.suffix in (".py", ".toml")]
    names = subprocess.run([git, "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    return [PROJECT / n for n in names.split("\0") if n and (PROJECT / n).is_file()]


def test_no_package_index_and_no_folder_of_one_machine_is_named() -> None:
    # Written in pieces, so that this file passes its own test.
    hosts = "|".join(["py" + r"pi\.org", "python" + r"hosted\.org", "index" + "-url", "find-" + "links" + r"[= ]\S*/"])
    homes = r"(?<![\w.~$}/-])/(?:" + "|".join(["ho" + "me", "Us" + "ers", "ro" + "ot", "wo" + "rk"]) + r")/\w"
    wrong = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        for number, line in enumerate(text.splitlines(), start=1):
            if re.search(f"{hosts}|{homes}", line):
                wrong.append(f"{path.relative_to(PROJECT)}:{number}: {line.strip()[:100]}")
    assert not wrong, "\n".join(wrong)


def test_no_source_file_is_too_long() -> None:
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in (PROJECT / "src").rglob("*.py")}
    assert {str(p.relative_to(PROJECT)): n for p, n in lengths.items() if n > 600} == {}
