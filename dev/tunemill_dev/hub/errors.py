"""The exception for rejected requests, and the errors that clients recognize by their code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class HubError(Exception):
    """A rejected request. Its JSON response has headers that `huggingface_hub` maps to its exception classes."""

    status: int
    message: str
    code: str = ""
    """`X-Error-Code`: RepoNotFound, GatedRepo, RevisionNotFound, EntryNotFound or empty."""
    commit: str = ""
    """The commit that was searched. Clients cache that a file does not exist in it."""

    @property
    def headers(self) -> dict[str, str]:
        """The response headers. `huggingface_hub` reads the reason from them, not from the body."""
        named = {"X-Error-Message": self.message, "X-Error-Code": self.code, "X-Repo-Commit": self.commit}
        return {name: value.replace("\n", " ") for name, value in named.items() if value}


def repository_not_found(*, signed_in: bool) -> HubError:
    """Return the error for a missing repository. It is also used for private ones, to hide that they exist."""
    return HubError(404 if signed_in else 401, "Repository not found", "RepoNotFound")


def revision_not_found(revision: str) -> HubError:
    """Return the error for a name that is no branch, tag or commit."""
    return HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def entry_not_found(path: str, commit: str) -> HubError:
    """Return the error for a file that the commit does not contain."""
    return HubError(404, f"{path} does not exist on {commit}", "EntryNotFound", commit)
