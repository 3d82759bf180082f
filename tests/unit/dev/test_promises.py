"""The pages about security, installation and privacy name the tests of their statements, and these tests exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = ("docs/how-to/security.md", "docs/how-to/install.md", "docs/how-to/privacy.md")
NAMED = re.compile(r"(tests/[\w/]+\.py)(?:::(\w+))?")
WITHOUT_TESTS = {
    "What you must secure yourself": "what Tunemill does not do",
    "From Git": "a link to another page, which tests/platform/gitops holds",
    "What a message says about a row": "held by the tests of the page's last section",
    "What is published": "held by the tests of the page's last section",
}
"""Sections that name no test, and why."""


@cache
def functions_in(path: str) -> frozenset[str]:
    """Return the names of the functions in a file."""
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(page: str) -> None:
    """A renamed or removed test needs a change of the page."""
    named = NAMED.findall((ROOT / page).read_text())
    assert named
    for path, name in named:
        assert (ROOT / path).is_file(), path
        assert not name or name in functions_in(path), f"{path}::{name}"


def test_every_attack_in_the_table_has_a_test() -> None:
    """A new row names its test."""
    rows = re.findall(
        r"^\|(.*)\|$", (ROOT / PAGES[0]).read_text().split("## Prevented attacks")[1].split("\n## ")[0], re.MULTILINE
    )
    assert len(rows) > 40
    for row in rows[2:]:
        last = re.split(r"(?<!\\)\|", row)[-1]
        assert NAMED.search(last) or "tunemill_dev" in last, row


@pytest.mark.parametrize("page", PAGES)
def test_every_section_names_its_tests(page: str) -> None:
    """In the text or in a comment."""
    sections = re.split(r"^##+ (.*)$", (ROOT / page).read_text(), flags=re.MULTILINE)
    for title, text in zip(sections[1::2], sections[2::2], strict=True):
        assert NAMED.search(text) or title in WITHOUT_TESTS, f"{page}: {title}"
