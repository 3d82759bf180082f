"""Hooks of MkDocs, so that pages can be written for GitHub.

Links to files outside `docs/` lead to the repository, at the version of the site: on the site there is no such file.
Lists get the indentation of four spaces that Python-Markdown needs.
"""

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

# A child of MkDocs' logger: with --strict its warnings fail the build.
_log = logging.getLogger("mkdocs.hooks.tunemill")
_FENCED = re.compile(r"^(?P<fence> *(?:```+|~~~+)).*?^(?P=fence) *$", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r" *(```+|~~~+)")
_ITEM = re.compile(r" *(?:[-*+]|\d+[.)]) +(?=\S)")
_LINK = re.compile(r"(?<=\]\()(?P<path>\.\.?/[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=\))")


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", **_: Any) -> str:  # noqa: ANN401 - MkDocs
    """Return the page as Python-Markdown needs it."""
    assert config.repo_url
    docs = Path(config.docs_dir).resolve()
    reference = config.extra["source_ref"]
    repository = f"{config.repo_url.rstrip('/')}/{{kind}}/{reference}"
    return indent_lists(link_sources(markdown, page.file.src_uri, docs, repository))


def indent_lists(markdown: str) -> str:
    """Return a page in which the content of list items is indented by four spaces a level, with blank lines around.

    GitHub indents it by as much as the item's text: two spaces after `- `, three after `1. `. Python-Markdown takes
    less than four spaces for the end of the list.
    """
    lines: list[str] = []
    # For each open item: the column of its text, and whether it has several blocks.
    items: list[tuple[int, bool]] = []
    fence = ""
    for line in markdown.splitlines():
        text = line.lstrip(" ")
        if not text:
            items = [(column, True) for column, _ in items]
            lines.append("")
            continue
        column = len(line) - len(text)
        closed = None
        while items and not fence and column < items[-1][0]:
            closed = items.pop()
        item = None if fence else _ITEM.match(line)
        if item and lines and lines[-1] and (closed[1] if closed else not items):
            lines.append("")
        inside = items[-1][0] if items else 0
        lines.append(" " * (4 * len(items) + max(column - inside, 0)) + text)
        if item:
            items.append((item.end(), False))
        if found := _FENCE.match(line):
            fence = "" if fence and text.startswith(fence) else fence or found[1]
    return "\n".join(lines) + "\n"


def link_sources(markdown: str, source: str, docs: Path, repository: str) -> str:
    """Return a page with links to files outside the documentation as URLs. Warns of a file that does not exist.

    Args:
        markdown: the page. Code blocks stay as they are.
        source: the path of the page from `docs`.
        docs: the documentation's folder, in the root of the repository.
        repository: URL of the repository at a version, with `{kind}` for `blob` or `tree`.
    """

    def link(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(docs / Path(source).parent / found["path"]))
        if target.is_relative_to(docs):
            return found[0]
        if not target.exists():
            _log.warning("%s: the link %s leads to no file of the repository", source, found["path"])
        kind = "tree" if target.is_dir() else "blob"
        path = target.relative_to(docs.parent).as_posix()
        return f"{repository.format(kind=kind)}/{path}{found['anchor'] or ''}"

    parts, end = [], 0
    for fenced in _FENCED.finditer(markdown):
        parts += [_LINK.sub(link, markdown[end : fenced.start()]), fenced[0]]
        end = fenced.end()
    return "".join([*parts, _LINK.sub(link, markdown[end:])])
