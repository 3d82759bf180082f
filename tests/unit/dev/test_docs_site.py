"""Markdown that both MkDocs and GitHub render correctly."""

import re
from pathlib import Path
from xml.etree import ElementTree

import markdown
import pytest
from tunemill_dev.docs_hooks import indent_lists, link_sources

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
REPOSITORY = "https://github.com/tunemill/tunemill/{kind}/v1"


def linked(markdown: str, source: str = "how-to/install.md") -> str:
    """Return a page with its links to the repository."""
    return link_sources(markdown, source, DOCS, REPOSITORY)


def test_links_to_files_outside_the_documentation_point_to_the_repository() -> None:
    """To a file, a folder, and a line in a file; at the version of the site."""
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
def test_other_links_and_code_are_unchanged(markdown: str) -> None:
    """MkDocs resolves links between pages."""
    assert linked(markdown) == markdown


def test_a_link_to_a_missing_file_fails_the_build(caplog: pytest.LogCaptureFixture) -> None:
    """MkDocs does not see the link, so the hook checks it."""
    linked("[it](../../charts/nothing.yaml)")
    (record,) = caplog.records
    assert record.name.startswith("mkdocs.")
    assert record.levelname == "WARNING"
    assert (
        record.getMessage()
        == "how-to/install.md: the link ../../charts/nothing.yaml leads to no file of the repository"
    )


NESTED = """\
Steps:
1. Write a file:

   ```yaml
   spec:
     gates: []

     publish: {}
   ```

   Then apply it.
2. Wait:
   - for the Job
   - for the pod, which
     takes a while

   ```console
   $ kubectl wait
   ```
3. Done.

- **Tight**: one
  line more
- second

    indented code of the second
"""


def test_github_style_lists_are_rendered_as_lists() -> None:
    """Two lists with three steps, and unchanged code and paragraphs inside them."""
    html = markdown.markdown(indent_lists(NESTED), extensions=["pymdownx.superfences", "sane_lists"])
    tree = ElementTree.fromstring(f"<body>{html}</body>")
    assert [child.tag for child in tree] == ["p", "ol", "ul"]
    steps = tree.findall("ol/li")
    assert [[child.tag for child in step] for step in steps] == [["p", "div", "p"], ["p", "ul", "div"], ["p"]]
    assert "".join(steps[0].find("div").itertext()).strip("\n") == "spec:\n  gates: []\n\n  publish: {}"
    waits = [" ".join("".join(item.itertext()).split()) for item in steps[1].findall("ul/li")]
    assert waits == ["for the Job", "for the pod, which takes a while"]
    assert len(tree.findall("ul/li")) == 2


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.relative_to(DOCS).as_posix())
def test_code_blocks_are_not_rendered_as_text(page: Path) -> None:
    """A fence in the text was not parsed."""
    html = markdown.markdown(
        indent_lists(page.read_text()), extensions=["pymdownx.superfences", "tables", "sane_lists"]
    )
    assert "```" not in re.sub(r"<(pre|code)\b.*?</\1>", "", html, flags=re.DOTALL)


def test_every_decision_is_in_the_index() -> None:
    """GitHub shows the folder's README, the site its page."""
    listed = re.findall(r"^(\d+)\. \[.+\]\((\d{4}-[\w-]+\.md)\)$", (DOCS / "adr/README.md").read_text(), re.MULTILINE)
    assert [name for _, name in listed] == sorted(path.name for path in (DOCS / "adr").glob("0*.md"))
    assert [int(number) for number, _ in listed] == [int(name[:4]) for _, name in listed]
