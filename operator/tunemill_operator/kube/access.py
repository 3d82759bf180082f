"""How to reach and convince the API server: from a kubeconfig, or from the pod that the operator runs in."""

import inspect
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from tunemill_operator.kube.transport import Pages, session_options


@dataclass(frozen=True)
class Credentials:
    """What a connection needs, for those that connect themselves."""

    server: str
    ca_file: str | None
    verify: bool
    token: str | None
    certificate_file: str | None
    key_file: str | None


class AccessError(Exception):
    """There is no usable kubeconfig, and the operator does not run in a pod."""


class Access:
    """The way to one API server; keeps short-lived tokens fresh."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        # Asked once: aiohttp would look for proxies and a .netrc in a thread for every request.
        configuration.proxy = configuration.proxy or _proxy(configuration.host)
        configuration.client_session_kwargs = session_options(Pages())

    @property
    def host(self) -> str:
        """The API server's host and port."""
        return urlsplit(self._configuration.host).netloc

    def client(self) -> ApiClient:
        """Return a client of its own connection pool; the caller closes it."""
        return ApiClient(self._configuration)

    async def credentials(self) -> Credentials:
        """Return what is valid at the moment."""
        configuration = self._configuration
        if configuration.refresh_api_key_hook is not None:
            refreshed = configuration.refresh_api_key_hook(configuration)
            if inspect.isawaitable(refreshed):
                await refreshed
        scheme, _, token = configuration.api_key.get("BearerToken", "").partition(" ")
        return Credentials(
            server=configuration.host,
            ca_file=configuration.ssl_ca_cert,
            verify=configuration.verify_ssl,
            token=token.strip() or scheme or None,
            certificate_file=configuration.cert_file,
            key_file=configuration.key_file,
        )


async def open_access(kubeconfig: str, context: str) -> Access:
    """Return the way to the API server.

    Args:
        kubeconfig: path of a kubeconfig; empty means the usual places, and the pod's service account inside a cluster.
        context: a context of the kubeconfig; empty means its current one.

    Raises:
        AccessError: when there is none.
    """
    configuration = Configuration()
    try:
        if not kubeconfig and not context:
            try:
                load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
                return Access(configuration)
            except ConfigException:  # not in a pod
                pass
        await load_kube_config(  # type: ignore[no-untyped-call]
            config_file=kubeconfig or None,
            context=context or None,
            client_configuration=configuration,
            persist_config=False,
        )
    except (ConfigException, OSError) as error:
        place = kubeconfig or "$KUBECONFIG or ~/.kube/config"
        raise AccessError(f"cannot reach a cluster with {place}: {error}; set --kubeconfig and --context") from error
    return Access(configuration)


def _proxy(server: str) -> str | None:
    """Return the proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY ask for on the way to the server."""
    url = urlsplit(server)
    # NO_PROXY names an IPv6 address without the brackets that it has in a URL.
    direct = proxy_bypass(url.netloc) or proxy_bypass(url.hostname or "")
    return None if direct else getproxies().get(url.scheme)
