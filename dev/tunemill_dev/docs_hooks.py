"""A hook of MkDocs: links from a page to files outside `docs/` lead to the repository, at the version of the site.

On GitHub such a link is a relative path and works as it is. On the site there is no such file.
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
_LINK = re.compile(r"(?<=\]\()(?P<path>\.\.?/[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=\))")


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", **_: Any) -> str:  # noqa: ANN401 - MkDocs
    """Return the page with links to files outside `docs/` as URLs of the repository; other links stay."""
    docs = Path(config.docs_dir).resolve()
    reference = config.extra["source_ref"]
    return link_sources(markdown, page.file.src_uri, docs, f"{config.repo_url.rstrip('/')}/{{kind}}/{reference}")


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
