"""The one exception with which the Hub refuses a request, and the refusals that clients recognise by their code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class HubError(Exception):
    """A refusal: becomes a JSON answer whose headers `huggingface_hub` turns into its exception classes."""

    status: int
    message: str
    code: str = ""
    """`X-Error-Code`: RepoNotFound, GatedRepo, RevisionNotFound, EntryNotFound or empty."""
    commit: str = ""
    """The commit that was searched, which clients need to remember that a file does not exist in it."""

    @property
    def headers(self) -> dict[str, str]:
        """`huggingface_hub` reads the reason from these headers, not from the body."""
        named = {"X-Error-Message": self.message, "X-Error-Code": self.code, "X-Repo-Commit": self.commit}
        return {name: value.replace("\n", " ") for name, value in named.items() if value}


def repository_not_found(*, signed_in: bool) -> HubError:
    """Also the answer for a private repository, so that its existence stays a secret."""
    return HubError(404 if signed_in else 401, "Repository not found", "RepoNotFound")


def revision_not_found(revision: str) -> HubError:
    """No branch, tag or commit has this name."""
    return HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def entry_not_found(path: str, commit: str) -> HubError:
    """The commit exists and has no such file."""
    return HubError(404, f"{path} does not exist on {commit}", "EntryNotFound", commit)
