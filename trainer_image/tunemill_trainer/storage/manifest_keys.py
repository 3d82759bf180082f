"""Signatures of manifests, with a key that the pods of one namespace hold and nobody who has only the S3 keys.

A signature is HMAC-SHA256 over the manifest's place below the workspace's prefix, a newline, and the manifest without
its signature as JSON with sorted keys and without spaces. The place is in it so that the manifest of a checkpoint, or
of another output, cannot be copied to where it does not belong.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pydantic import JsonValue

SIGNATURE = "signature"
"""The field of a manifest that holds its signature."""
SHORTEST = 32
"""Characters that a key has at least."""
_ALGORITHM = "hmac-sha256"
_CLOCK_DIFFERENCE = timedelta(minutes=5)


class ManifestKeyError(ValueError):
    """A Secret holds no key that can be used; the message says why, and nothing of the key."""


@dataclass(frozen=True)
class ManifestKeys:
    """The keys of a namespace. Their repr shows nothing of them."""

    key: bytes = field(repr=False)
    """Signs, and is accepted."""
    previous: bytes = field(default=b"", repr=False)
    """Is accepted as well; empty for none."""
    trusted_before: datetime | None = None
    """What the S3 server says was written before this time needs no signature: nobody can write into the past."""

    @classmethod
    def read(cls, key: str, previous: str, trusted_before: str) -> "ManifestKeys":
        """Return the keys of a Secret; of what may be absent, the empty text stands for it.

        Raises:
            ManifestKeyError: when one of the three cannot be used.
        """
        for name, text in (("key", key), ("previous-key", previous)):
            if text and len(text) < SHORTEST:
                raise ManifestKeyError(f"expected at least {SHORTEST} characters in {name}, found {len(text)}")
        return cls(key.encode(), previous.encode(), _time(trusted_before) if trusted_before else None)

    def sign(self, place: str, document: Mapping[str, JsonValue]) -> str:
        """Return the signature of a manifest that lies at a place below the prefix."""
        return _signature(self.key, place, document)

    def problem(self, place: str, document: Mapping[str, JsonValue], written_at: datetime) -> str:
        """Return why a manifest cannot be trusted; empty when it can.

        Args:
            place: where it lies below the prefix.
            document: the manifest as it was read.
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
        return "is signed with another key, or was changed or moved after it was signed"


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
        raise ManifestKeyError("expected a time with its zone in trusted-before, such as 2026-11-30T12:00:00Z")
    if time > datetime.now(UTC) + _CLOCK_DIFFERENCE:
        raise ManifestKeyError(
            "expected a time that has passed in trusted-before: until then everybody could write outputs that are used"
        )
    return time
