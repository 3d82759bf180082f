"""The server, the issuer of tokens, and the trust configuration that a client gets."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from typing_extensions import override

from tunemill_dev.sigstore.authority import CertificateAuthority
from tunemill_dev.sigstore.log import TransparencyLog

ISSUER = "https://issuer.test/clusters/prod"
AUDIENCE = "sigstore"
FULCIO, REKOR = "/api/v2/signingCert", "/api/v1/log/entries"
Json = dict[str, Any]


@dataclass
class LocalSigstore:
    """A Sigstore instance, with a cluster whose tokens it accepts."""

    url: str = ""
    failures: dict[str, int] = field(default_factory=dict)
    """The HTTP status with which a path answers, if it is to fail. 0: it never answers."""
    log: TransparencyLog = field(default_factory=TransparencyLog)
    entries: list[Json] = field(default_factory=list)
    """The entries of the log."""
    _authority: CertificateAuthority = field(default_factory=CertificateAuthority)
    _cluster: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def token(self, namespace: str = "team-a", account: str = "default", **claims: object) -> str:
        """Return a service account's token, as the kubelet mounts it."""
        now = datetime.now(UTC)
        return jwt.encode(
            {
                "iss": ISSUER,
                "aud": [AUDIENCE],
                "sub": f"system:serviceaccount:{namespace}:{account}",
                "iat": now,
                "nbf": now,
                "exp": now + timedelta(hours=1),
                "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": account, "uid": "u"}},
                **claims,
            },
            self._cluster,
            algorithm="ES256",
        )

    def trust_config(self) -> str:
        """Return the ClientTrustConfig as JSON."""
        valid = {"start": "2020-01-01T00:00:00Z"}
        service = {"url": self.url, "majorApiVersion": 1, "validFor": valid, "operator": "tests"}

        def log(key: bytes) -> Json:
            return {
                "baseUrl": self.url,
                "hashAlgorithm": "SHA2_256",
                "publicKey": {"rawBytes": _text(key), "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": valid},
                "logId": {"keyId": _text(hashlib.sha256(key).digest())},
            }

        root = {
            "subject": {"organization": "tunemill tests", "commonName": "fulcio"},
            "uri": self.url,
            "certChain": {"certificates": [{"rawBytes": _text(self._authority.root.public_bytes(Encoding.DER))}]},
            "validFor": valid,
        }
        return json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
                "trustedRoot": {
                    "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                    "tlogs": [log(self.log.public_key)],
                    "certificateAuthorities": [root],
                    "ctlogs": [log(self._authority.log_key)],
                    "timestampAuthorities": [],
                },
                "signingConfig": {
                    "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
                    "caUrls": [service],
                    "oidcUrls": [],
                    "rekorTlogUrls": [service],
                    "rekorTlogConfig": {"selector": "ANY"},
                    "tsaUrls": [],
                    "tsaConfig": {"selector": "ANY"},
                },
            }
        )

    def answer(self, path: str, authorization: str, body: Json) -> tuple[int, Json]:
        """Return the HTTP status and the answer to a request."""
        if path in self.failures:
            return self.failures[path], {"code": 3, "message": "as the test wants it"}
        if path == FULCIO:
            return self._certify(authorization.removeprefix("Bearer "), body)
        if path == REKOR:
            try:
                entry = self.log.add(body)
            except (ValueError, KeyError) as error:
                return 400, {"code": 400, "message": str(error)}
            self.entries.append(entry)
            return 201, entry
        return 404, {}

    def _certify(self, token: str, body: Json) -> tuple[int, Json]:
        try:
            claims = jwt.decode(
                token, self._cluster.public_key(), algorithms=["ES256"], audience=AUDIENCE, issuer=ISSUER
            )
        except jwt.InvalidTokenError as error:
            return 401, {"code": 16, "message": f"There was an error processing the identity token: {error}"}
        request = x509.load_pem_x509_csr(base64.b64decode(body["certificateSigningRequest"]))
        key = request.public_key()
        if not request.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey):
            return 400, {"code": 3, "message": "The certificate signing request could not be verified"}
        account = claims["kubernetes.io"]
        identity = (
            f"https://kubernetes.io/namespaces/{account['namespace']}/serviceaccounts/"
            f"{account['serviceaccount']['name']}"
        )
        issued = self._authority.certificate(key, identity, claims["iss"])
        chain = [item.public_bytes(Encoding.PEM).decode() for item in (issued, self._authority.root)]
        return 200, {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}


@contextmanager
def local_sigstore() -> Iterator[LocalSigstore]:
    """Run an instance until the block ends."""
    instance, ended = LocalSigstore(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = instance.answer(self.path, self.headers.get("Authorization", ""), body)
            if status == 0:
                ended.wait()
                return
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        @override
        def log_message(self, *_arguments: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="sigstore server")
        thread.start()
        instance.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield instance
        finally:
            ended.set()
            server.shutdown()
            thread.join()


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
