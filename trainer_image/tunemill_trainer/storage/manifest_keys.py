"""Signatures of manifests, with a key that the pods of a namespace have, but other users of the S3 bucket do not.

A signature is HMAC-SHA256 over the manifest's path below the workspace's prefix, a newline, and the manifest without
its signature as JSON with sorted keys and without spaces. It covers the path, so that a signed manifest cannot be
copied to another output or checkpoint.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pydantic import JsonValue

SIGNATURE = "signature"
"""The field of a manifest with its signature."""
SHORTEST = 32
"""Minimum length of a key in characters."""
_ALGORITHM = "hmac-sha256"
_CLOCK_DIFFERENCE = timedelta(minutes=5)


class ManifestKeyError(ValueError):
    """A Secret has no usable key. The message has the cause and no part of the key."""


@dataclass(frozen=True)
class ManifestKeys:
    """The keys of a namespace. Their repr does not contain the values."""

    key: bytes = field(repr=False)
    """The key for new signatures."""
    previous: bytes = field(default=b"", repr=False)
    """A key whose signatures are accepted, too; empty for none."""
    trusted_before: datetime | None = None
    """Manifests written before this time, by the S3 server's clock, need no signature."""

    @classmethod
    def read(cls, key: str, previous: str, trusted_before: str) -> "ManifestKeys":
        """Parse the values of a Secret. `previous` and `trusted_before` may be empty.

        Raises:
            ManifestKeyError: when a value cannot be used.
        """
        for name, text in (("key", key), ("previous-key", previous)):
            if text and len(text) < SHORTEST:
                raise ManifestKeyError(f"expected at least {SHORTEST} characters in {name}, found {len(text)}")
        return cls(key.encode(), previous.encode(), _time(trusted_before) if trusted_before else None)

    def sign(self, place: str, document: Mapping[str, JsonValue]) -> str:
        """Return the signature of a manifest at a path below the prefix."""
        return _signature(self.key, place, document)

    def problem(self, place: str, document: Mapping[str, JsonValue], written_at: datetime) -> str:
        """Return why a manifest cannot be trusted; empty if it can.

        Args:
            place: the path of its folder below the prefix.
            document: the parsed manifest.
            written_at: when it was written, by the S3 server's clock.
        """
        if self.trusted_before is not None and written_at < self.trusted_before:
            return ""
        given = document.get(SIGNATURE)
        if not isinstance(given, str) or not given:
            return "is not signed"
        known = [key for key in (self.key, self.previous) if key]
        if any(hmac.compare_digest(_signature(key, place, document).encode(), given.encode()) for key in known):
            return ""
        return "is signed with another key, or was modified or moved after it was signed"


def _signature(key: bytes, place: str, document: Mapping[str, JsonValue]) -> str:
    unsigned = {name: value for name, value in document.items() if name != SIGNATURE}
    text = f"{place}\n{json.dumps(unsigned, sort_keys=True, separators=(',', ':'))}"
    return f"{_ALGORITHM}:{hmac.new(key, text.encode(), hashlib.sha256).hexdigest()}"


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise ManifestKeyError("expected a time with time zone in trusted-before, such as 2026-11-30T12:00:00Z")
    if time > datetime.now(UTC) + _CLOCK_DIFFERENCE:
        raise ManifestKeyError(
            "expected a time in the past in trusted-before: until that time, unsigned outputs would be accepted"
        )
    return time
