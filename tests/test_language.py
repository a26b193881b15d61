"""Text reads as plain engineering English: words and openings that must not come back."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORDS = re.compile(
    r"left out|done again|\btold\b|\btells of\b|\bmend(s|ed)?\b|\bis said\b|\bundone\b|\boptimis(er|ers)\b",
    re.IGNORECASE,
)
OPENINGS = ("Of ", "As ", "By ", "That ", "Whether or ")
LONGEST_README = 130
RENAMED = re.compile(r"^### Was called, is called\n.*?(?=^#|\Z)", re.MULTILINE | re.DOTALL)  # in CHANGELOG

SOURCES = sorted((ROOT / "src").rglob("*.py"))
TEXTS = sorted(
    path
    for place in ("src", "docs")
    for suffix in ("md", "html", "yaml")
    for path in (ROOT / place).rglob(f"*.{suffix}")
)
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]


def _name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [*PAGES, *TEXTS, *SOURCES], ids=_name)
def test_no_word_of_the_old_dialect(path):
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":
        text = RENAMED.sub("", text)
    lines = enumerate(text.splitlines(), 1)
    assert [f"{number}: {line.strip()}" for number, line in lines if WORDS.search(line)] == []


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_a_docstring_says_what_the_thing_is_or_does(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    assert [text.splitlines()[0] for text in texts if text.startswith(OPENINGS)] == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README
