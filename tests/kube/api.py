"""A client of the API server for tests: JSON in, JSON out, with a kubeconfig."""

import base64
import json
from pathlib import Path
from typing import Any

import urllib3
import yaml

Json = dict[str, Any]
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"


class ApiError(Exception):
    """The API server refused a request."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Api:
    """One connection pool, usable from several threads."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.server: str = cluster["server"]
        self.token: str = user.get("token", "")
        files = {"ca": cluster, "client-certificate": user, "client-key": user}
        paths: dict[str, str | None] = {}
        for name, source in files.items():
            field = "certificate-authority" if name == "ca" else name
            paths[name] = source.get(field)
            if data := source.get(f"{field}-data"):
                path = kubeconfig.with_suffix(f".{name}.pem")
                path.write_bytes(base64.b64decode(data))
                paths[name] = str(path)
        self._pool = urllib3.PoolManager(
            ca_certs=paths["ca"],
            cert_file=paths["client-certificate"],
            key_file=paths["client-key"],
            retries=False,
            timeout=10,
            maxsize=8,
        )

    def request(self, method: str, path: str, body: Json | None = None, content_type: str = "application/json") -> Json:
        """Make a request.

        Raises:
            ApiError: when the answer is not a success.
        """
        text = None if body is None else json.dumps(body)
        decoded: Json = json.loads(self.send(method, path, text, content_type))
        return decoded

    def send(self, method: str, path: str, text: str | None, content_type: str = "application/json") -> bytes:
        """Make a request with a body that need not be JSON; return the response.

        Raises:
            ApiError: when the response is not a success.
        """
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        body = None if text is None else text.encode(errors="surrogatepass")
        answer = self._pool.request(method, f"{self.server}{path}", body=body, headers=headers)
        if answer.status >= 400:
            raise ApiError(answer.status, answer.data.decode())
        return answer.data

    def get(self, path: str) -> Json:
        """Return an object or a list."""
        return self.request("GET", path)

    def find(self, path: str) -> Json | None:
        """Return an object, or None if it does not exist (also for 429, the response while a CRD is established)."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.code not in {404, 429}:
                raise
            return None

    def post(self, path: str, body: Json) -> Json:
        """Create an object."""
        return self.request("POST", path, body)

    def patch(self, path: str, body: Json, content_type: str = MERGE_PATCH) -> Json:
        """Change an object."""
        return self.request("PATCH", path, body, content_type)

    def delete(self, path: str, body: Json | None = None) -> Json:
        """Delete an object."""
        return self.request("DELETE", path, body)
