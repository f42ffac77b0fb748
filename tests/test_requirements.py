"""The requirements: each lock is of what its input asks for, exact and hashed, and says of nothing where to get it."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.supply.lock import BadLine, Locked, read_lock

ROOT = Path(__file__).parent.parent
PRODUCTION = "requirements"
# Each input, with the locks that its own comes on top of; what is in them is not in its own.
BENEATH = {
    PRODUCTION: [],
    "requirements-test": [PRODUCTION],
    "bench/requirements": [PRODUCTION, "requirements-test"],
    "tests/supply/requirements": [],
}
SERVING = ("server", "handlers", "storage", "events", "agents", "metrics")

each_input = pytest.mark.parametrize("name", BENEATH)


def _asked(name: str) -> dict[str, Requirement]:
    lines = (ROOT / f"{name}.in").read_text().splitlines()
    stripped = (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines)
    requirements = [Requirement(line) for line in stripped if line]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def _locked(name: str) -> dict[str, Locked]:
    return {package.name: package for package in read_lock(ROOT / f"{name}.txt")}


def _imported(packages: tuple[str, ...]) -> dict[str, str]:
    """Each top-level name that files of `packages` import, anywhere in them, with one that does."""
    names: dict[str, str] = {}
    for path in sorted(path for package in packages for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            else:
                continue
            names |= {module.partition(".")[0]: str(path.relative_to(ROOT)) for module in modules}
    return names


@each_input
def test_each_package_is_locked_once_with_the_hash_of_a_file_at_least(name: str) -> None:
    packages = read_lock(ROOT / f"{name}.txt")  # which refuses what has no exact version
    assert packages
    assert [package.name for package in packages if not package.hashes] == []
    assert len({package.name for package in packages}) == len(packages)


@each_input
def test_the_lock_has_what_its_input_asks_for_and_nothing_that_it_asked_for_once(name: str) -> None:
    asked = _asked(name)
    available = {package: locked for lock in [name, *BENEATH[name]] for package, locked in _locked(lock).items()}
    for package, requirement in asked.items():
        assert package in available, f"{package} is not locked: make lock"
        assert str(requirement.specifier) == f"=={available[package].version}", f"{package}: make lock"
        marker = available[package].marker
        assert marker == (str(requirement.marker).replace('"', "'") if requirement.marker else None), package
    direct = {package.name for package in _locked(name).values() if f"-r {name}.in" in package.needed_by}
    assert direct <= set(asked), "make lock"


@pytest.mark.parametrize("name", [name for name, beneath in BENEATH.items() if beneath])
def test_locks_that_are_installed_together_agree(name: str) -> None:
    mine = _locked(name)
    for other in BENEATH[name]:
        theirs = _locked(other)
        assert [each for each in mine.keys() & theirs.keys() if mine[each].version != theirs[each].version] == []


@each_input
@pytest.mark.parametrize("suffix", ["in", "txt"])
def test_no_file_says_where_packages_come_from(name: str, suffix: str) -> None:
    text = (ROOT / f"{name}.{suffix}").read_text()
    assert re.findall(r"(?m)^\s*-(?!-hash=).*|\S*(?:://|@|file:)\S*|(?<!\S)/\S+", text) == []
    # A word with a dot in it, that is no version and no file of the project's.
    dotted = set(re.findall(r"(?<![\w.=-])[a-z][\w-]*(?:\.[\w-]+)*\.[a-z]{2,}\b", text))
    assert {word for word in dotted if not word.startswith("requirements")} == set()


def test_what_serves_imports_only_what_production_asks_for_by_name() -> None:
    asked, distributions = _asked(PRODUCTION), packages_distributions()
    own = sys.stdlib_module_names | set(SERVING)
    imported = {module: path for module, path in _imported(SERVING).items() if module not in own}
    assert {"aiohttp", "sqlalchemy", "msgspec"} <= set(imported)
    for module, path in imported.items():
        assert any(canonicalize_name(found) in asked for found in distributions.get(module, [])), (
            f"{path} imports {module}, which requirements.in does not name"
        )


@pytest.mark.parametrize(
    "line",
    ["aiohttp>=3.14 \\", "aiohttp \\", "--index-url https://index.invalid/simple", "aiohttp==3.14.5", "-e ."],
)
def test_a_line_that_make_lock_would_not_write_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text(f"# made\n{line}\n    --hash=sha256:{'0' * 64}\n")
    with pytest.raises(BadLine, match=r"lock\.txt:2: "):
        read_lock(tmp_path / "lock.txt")
