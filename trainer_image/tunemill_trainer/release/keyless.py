"""Signatures without a key, by Sigstore (https://docs.sigstore.dev).

Sigstore's CA, Fulcio, checks the token of a service account and issues a certificate for a new key, which is valid for
ten minutes and then discarded. A transparency log, Rekor, records the signature in that time. The bundle of signed
document, certificate and log entry can be verified without the network.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from tunemill_api.plain_text import plain

from tunemill_trainer.release.signing import PAYLOAD_TYPE

if TYPE_CHECKING:
    from sigstore.models import ClientTrustConfig
    from sigstore.oidc import IdentityToken

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

SECONDS: Final = 120.0
"""Longest time for a request to Sigstore, whose clients have no timeouts of their own."""
_ACCOUNT: Final = "system:serviceaccount:"
_MAX_SHOWN: Final = 300
"""Characters of a server's answer in a message."""


@dataclass(frozen=True)
class Identity:
    """Who signs.

    Attributes:
        name: the subject alternative name of the certificate, which Fulcio makes of the token.
        issuer: the URL of the issuer of the token.
    """

    name: str
    issuer: str


class KeylessError(Exception):
    """Base class of these errors. No message has a token in it."""


class IdentityTokenError(KeylessError):
    """The token is not one of a service account, or has expired."""


class SigstoreRefusedError(KeylessError):
    """Sigstore does not accept the token, or the trust configuration does not fit."""


class SigstoreUnreachableError(KeylessError):
    """Sigstore gives no usable answer; a later attempt may succeed."""


class NotVerifiedError(KeylessError):
    """A bundle is not the signature of this identity."""


def trust_config(text: str) -> "ClientTrustConfig":
    """Return the trust configuration of a Sigstore instance.

    Args:
        text: a ClientTrustConfig as JSON. Empty: that of the public instance, of which the newest is downloaded.

    Raises:
        SigstoreRefusedError: the text is no trust configuration.
        SigstoreUnreachableError: that of the public instance cannot be downloaded.
    """
    from sigstore.errors import Error
    from sigstore.models import ClientTrustConfig

    if not text:
        try:
            return _within(SECONDS, ClientTrustConfig.production)
        except (Error, OSError) as error:
            raise SigstoreUnreachableError(
                f"the keys of the public instance of Sigstore cannot be downloaded: {_words(error)}"
            ) from error
    try:
        return ClientTrustConfig.from_json(text)
    except (Error, ValueError) as error:
        raise SigstoreRefusedError(f"the trust configuration of Sigstore cannot be used: {_words(error)}") from error


def verified(bundle: bytes, identity: Identity, trust: "ClientTrustConfig") -> bytes:
    """Return the signed document in a bundle, after all checks of Sigstore.

    Raises:
        NotVerifiedError: the bundle is not valid, or somebody else has signed.
    """
    from sigstore.models import Bundle
    from sigstore.verify import Verifier, policy

    whom = policy.Identity(identity=identity.name, issuer=identity.issuer)
    try:
        found = Verifier(trusted_root=trust.trusted_root).verify_dsse(Bundle.from_json(bundle), whom)
    except Exception as error:
        # Of any type: the bundle comes from a stranger, and the parsers of its parts have no common base class.
        raise NotVerifiedError(_words(error)) from error
    kind, document = found
    if kind != PAYLOAD_TYPE:
        raise NotVerifiedError(f"expected a signed document of the type {PAYLOAD_TYPE}, found {kind}")
    return document


class KeylessSigner:
    """Signs as a service account. Its repr does not contain the token.

    Args:
        read_token: returns the present token. The kubelet renews it, and a release may take longer than it lives.
        config: as for `trust_config`.

    Raises:
        KeylessError: nothing can be signed.
    """

    def __init__(self, read_token: Callable[[], str], config: str) -> None:
        self._read_token = read_token
        self.identity = _identity(_parsed(read_token()))
        self._trust = trust_config(config)

    @property
    def name(self) -> str:
        """The identity, for messages."""
        return self.identity.name

    def sign(self, document: bytes) -> bytes:
        """Return the bundle that signs an in-toto statement, as JSON. It has a new entry of the public log.

        Raises:
            IdentityTokenError: the token has expired.
            SigstoreRefusedError: Sigstore does not accept the token or the entry.
            SigstoreUnreachableError: Sigstore gives no usable answer.
        """
        token = _parsed(self._read_token())
        bundle = _within(SECONDS, lambda: self._request(token, document))
        try:
            verified(bundle, self.identity, self._trust)
        except NotVerifiedError as error:
            raise SigstoreRefusedError(f"the signature that Sigstore returned is not valid: {error}") from error
        _log.info("signed by Sigstore as %s, issuer %s", self.identity.name, self.identity.issuer)
        return bundle

    def has_signed(self, bundle: bytes, document: bytes) -> bool:
        """Return whether a bundle is this identity's signature of the document."""
        try:
            return verified(bundle, self.identity, self._trust) == document
        except NotVerifiedError:
            return False

    def _request(self, token: "IdentityToken", document: bytes) -> bytes:
        from sigstore.dsse import Statement
        from sigstore.sign import SigningContext

        try:
            with SigningContext.from_trust_config(self._trust).signer(token) as signer:
                return signer.sign_dsse(Statement(document)).to_json().encode() + b"\n"
        except Exception as error:
            # Of any type: the errors of the clients of Fulcio and Rekor have no public base class.
            raise _failure(error) from error


def _parsed(token: str) -> "IdentityToken":
    from sigstore.oidc import IdentityError, IdentityToken

    try:
        return IdentityToken(token)
    except IdentityError:
        # Without the cause: its message may quote the token.
        raise IdentityTokenError(
            "the token for Sigstore has expired, or is no token with the audience sigstore"
        ) from None


def _identity(token: "IdentityToken") -> Identity:
    """Return the identity that Fulcio puts into the certificate for an issuer of the type kubernetes."""
    namespace, _, account = token.identity.removeprefix(_ACCOUNT).partition(":")
    if not token.identity.startswith(_ACCOUNT) or not account:
        raise IdentityTokenError("the token for Sigstore is not one of a Kubernetes service account")
    return Identity(f"https://kubernetes.io/namespaces/{namespace}/serviceaccounts/{account}", token.issuer)


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """Return the result of a call in a thread of its own.

    Raises:
        SigstoreUnreachableError: it takes longer. Its thread then ends with the process.
    """
    outcome: Future[_T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
            outcome.set_exception(error)

    threading.Thread(target=run, name="sigstore", daemon=True).start()
    if wait([outcome], seconds).not_done:
        raise SigstoreUnreachableError(f"Sigstore did not answer within {seconds:.0f} s")
    return outcome.result()


def _failure(error: Exception) -> KeylessError:
    """Return the error for what a client of Fulcio or Rekor has raised."""
    import requests

    link: BaseException | None = error
    while link is not None and not isinstance(link, requests.HTTPError):
        link = link.__cause__ or link.__context__
    answer = link.response if link else None
    if answer is None:
        from sigstore.errors import VerificationError

        if isinstance(error, VerificationError):
            return SigstoreRefusedError(f"the answer of Sigstore does not fit its trust configuration: {_words(error)}")
        return SigstoreUnreachableError(f"Sigstore gives no usable answer: {_words(error)}")
    text = f"{answer.url.partition('?')[0]} returned HTTP {answer.status_code}: {plain(answer.text)[:_MAX_SHOWN]}"
    refused = 400 <= answer.status_code < 500 and answer.status_code not in {408, 429}
    return SigstoreRefusedError(text) if refused else SigstoreUnreachableError(text)


def _words(error: BaseException) -> str:
    """Return the first line of an error, or its type if it has none."""
    return plain((str(error).strip().splitlines() or [type(error).__name__])[0])[:_MAX_SHOWN]
