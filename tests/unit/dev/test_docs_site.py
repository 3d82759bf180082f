"""The documentation site: what MkDocs and GitHub must both understand."""

import re
from pathlib import Path

import pytest
from tunemill_dev.docs_hooks import link_sources

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
REPOSITORY = "https://github.com/tunemill/tunemill/{kind}/v1"


def linked(markdown: str, source: str = "how-to/install.md") -> str:
    """Return a page with its links to the repository."""
    return link_sources(markdown, source, DOCS, REPOSITORY)


def test_links_out_of_the_documentation_lead_to_the_repository() -> None:
    """To a file, a folder, and a place in a file; at the version of the site."""
    start = REPOSITORY.format(kind="blob")
    assert linked("see [it](../../charts/install.yaml).") == f"see [it]({start}/charts/install.yaml)."
    assert linked("[it](../SECURITY.md#support)", "README.md") == f"[it]({start}/SECURITY.md#support)"
    assert linked("[it](../../crds/gitops)") == f"[it]({REPOSITORY.format(kind='tree')}/crds/gitops)"


@pytest.mark.parametrize(
    "markdown",
    [
        "[page](../reference/values.md#image)",
        "[page](gpus.md)",
        "[site](https://example.com/../../charts)",
        "```\n[it](../../charts/install.yaml)\n```\n",
        "1. list\n\n    ```md\n    [it](../../charts/install.yaml)\n    ```\n",
    ],
)
def test_other_links_and_code_stay(markdown: str) -> None:
    """MkDocs resolves links between pages; code is shown as it is."""
    assert linked(markdown) == markdown


def test_a_link_to_a_missing_file_is_a_warning_which_fails_the_build(caplog: pytest.LogCaptureFixture) -> None:
    """MkDocs does not see the link, so the hook checks it."""
    linked("[it](../../charts/nothing.yaml)")
    (record,) = caplog.records
    assert record.name.startswith("mkdocs.")
    assert record.levelname == "WARNING"
    assert (
        record.getMessage()
        == "how-to/install.md: the link ../../charts/nothing.yaml leads to no file of the repository"
    )


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.relative_to(DOCS).as_posix())
def test_code_in_lists_is_indented_by_four(page: Path) -> None:
    """GitHub needs as much as the list's text is indented by; Python-Markdown, which makes the site, four spaces."""
    indents = re.findall(r"^( +)(?:```|~~~)", page.read_text(), re.MULTILINE)
    assert not [indent for indent in indents if len(indent) % 4]


def test_every_decision_is_in_the_index() -> None:
    """GitHub shows the folder's README, the site its page."""
    listed = re.findall(r"^(\d+)\. \[.+\]\((\d{4}-[\w-]+\.md)\)$", (DOCS / "adr/README.md").read_text(), re.MULTILINE)
    assert [name for _, name in listed] == sorted(path.name for path in (DOCS / "adr").glob("0*.md"))
    assert [int(number) for number, _ in listed] == [int(name[:4]) for _, name in listed]
