"""Rules that the project keeps about itself."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("data", "pretrain", "eval", "cluster")
LONGEST_FILE = 400
LONGEST_MEDIAN = 150


def tracked_files(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def test_no_source_file_is_longer_than_400_lines() -> None:
    files = tracked_files("*.py")
    assert len(files) > 30
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FILE} == {}


@pytest.mark.parametrize("folder", PACKAGES)
def test_half_of_the_source_files_are_short(folder: str) -> None:
    lengths = [len(path.read_text().splitlines()) for path in tracked_files(f"{folder}/*.py")]
    assert statistics.median(lengths) <= LONGEST_MEDIAN


@pytest.mark.parametrize("folder", PACKAGES)
def test_packages_keep_no_code_in_init(folder: str) -> None:
    """Every folder with modules is a package, and its docstring says what is in it."""
    for path in tracked_files(f"{folder}/*.py"):
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} has no __init__.py"
    for path in (ROOT / folder).rglob("__init__.py"):
        text = path.read_text().strip()
        assert text.startswith('"""'), f"{path} has no docstring"
        assert text.endswith('"""'), f"{path} holds more than its docstring"


def test_names_in_a_run_folder_are_spelt_in_one_module() -> None:
    """`pretrain.run_layout` knows them; a second spelling once had other digits."""
    spelling = re.compile(
        r"step_\{|step_\(|glob\(.*step_|rank_\{\w+:02|[\"'/](results\.json|metrics\.jsonl|events\.jsonl|summary\.json|"
        r"report\.html|action_ranges\.json|image_tokenizer\.safetensors|READY|\.stop)[\"']"
    )
    spelt = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in tracked_files(*(f"{folder}/*.py" for folder in PACKAGES))
        for line in path.read_text().splitlines()
        if spelling.search(line) and path.name != "run_layout.py"
    }
    assert spelt == set()


def test_no_module_is_named_after_a_package() -> None:
    clashes = [path for path in tracked_files("*.py") if path.stem in PACKAGES]
    assert clashes == []


def test_configs_and_slurm_hold_no_python() -> None:
    assert tracked_files("configs/*.py", "slurm/*.py") == []


def opened_in_the_locales_encoding(source: str) -> set[int]:
    """Lines that read or write text without naming its encoding: it is another one under another locale."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(word.arg == "encoding" for word in node.keywords):
            continue
        name, is_method = getattr(node.func, "attr", getattr(node.func, "id", "")), hasattr(node.func, "attr")
        given = {word.arg: word.value for word in node.keywords}
        mode = next(iter([given["mode"]] if "mode" in given else node.args[not is_method :][:1]), None)
        kind = mode.value if isinstance(mode, ast.Constant) else mode
        opens_text = kind is None or (isinstance(kind, str) and re.fullmatch("[rwax+t]+", kind) is not None)
        if (
            (name in ("read_text", "write_text") and len(node.args) < 1 + (name == "write_text"))
            or (name == "open" and opens_text and not (is_method and kind is None and node.keywords))
            or any(getattr(given.get(word), "value", None) is True for word in ("text", "universal_newlines"))
        ):
            lines.add(node.lineno)
    return lines


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("p.read_text()", True),
        ("p.read_text('utf-8', 'replace')", False),
        ("p.write_text(x)", True),
        ("p.write_text(x, encoding='utf-8')", False),
        ("open(p)", True),
        ("open(p, 'rb')", False),
        ("p.open()", True),
        ("p.open('a')", True),
        ("p.open(mode='a')", True),
        ("p.open('ab')", False),
        ("suite.open(task)", False),
        ("os.open(p, os.O_RDONLY)", False),
        ("run(words, capture_output=True, text=True)", True),
        ("run(words, capture_output=True, encoding='utf-8')", False),
    ],
)
def test_the_rule_of_encodings_finds_what_it_looks_for(source: str, found: bool) -> None:
    assert opened_in_the_locales_encoding(source) == ({1} if found else set())


def test_no_text_is_read_or_written_in_the_locales_encoding() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in tracked_files(*(f"{folder}/*.py" for folder in (*PACKAGES, "benchmarks")))
        for line in opened_in_the_locales_encoding(path.read_text("utf-8"))
    }
    assert found == set()


def imported_packages(*folders: str) -> set[str]:
    """Top-level names of everything foreign that the folders' sources import."""
    names: set[str] = set()
    for path in tracked_files(*(f"{folder}/*.py" for folder in folders)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"__future__", *folders}


def test_everything_imported_is_declared_and_pinned() -> None:
    """What only happens to be installed on one machine is missing on the next."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    without_dependencies = (ROOT / "requirements-simulators.txt").read_text().splitlines()
    requirements = [*project["dependencies"], *project["optional-dependencies"]["sim"], *without_dependencies]
    declared = {normal(re.split(r"[^\w.-]", line)[0]) for line in requirements}
    pins = (ROOT / "constraints.txt").read_text() + "\n".join(without_dependencies)
    pinned = {normal(line.split("==")[0]) for line in pins.splitlines() if "==" in line}
    distributions = packages_distributions()
    for name in sorted(imported_packages(*PACKAGES)):
        found = {normal(distribution) for distribution in distributions.get(name, [name])}
        assert found & declared, f"{name} is imported but not a dependency in pyproject.toml"
        assert found & pinned, f"{name} is imported but has no version in constraints.txt"


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_glossary_names_files_that_exist() -> None:
    rows = [line for line in (ROOT / "docs/glossary.md").read_text().splitlines() if line.endswith("` |")]
    paths = [line.rsplit("`", 2)[1] for line in rows]
    assert 30 < len(paths) <= 40
    assert [path for path in paths if not (ROOT / path).is_file()] == []
