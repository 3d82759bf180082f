"""Access to the API server, from a kubeconfig or from the operator's pod."""

import inspect
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from tunemill_operator.kube.transport import Pages, session_options


@dataclass(frozen=True)
class Credentials:
    """Address and credentials for other HTTP clients."""

    server: str
    ca_file: str | None
    verify: bool
    token: str | None
    certificate_file: str | None
    key_file: str | None


class AccessError(Exception):
    """There is no usable kubeconfig, and the operator does not run in a pod."""


class Access:
    """Access to one API server. It renews short-lived tokens."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        # Set once: aiohttp would look up proxies and a .netrc in a thread for every request.
        configuration.proxy = configuration.proxy or _proxy(configuration.host)
        configuration.client_session_kwargs = session_options(Pages())

    @property
    def host(self) -> str:
        """Host and port of the API server."""
        return urlsplit(self._configuration.host).netloc

    def client(self) -> ApiClient:
        """Return a client with its own connection pool. The caller must close it."""
        return ApiClient(self._configuration)

    async def credentials(self) -> Credentials:
        """Return the current credentials."""
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
    """Return access to the API server.

    Args:
        kubeconfig: path of a kubeconfig; empty means the pod's ServiceAccount, else the default kubeconfig.
        context: context of the kubeconfig; empty means its current one.

    Raises:
        AccessError: there is no access.
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
    """Return the proxy of HTTPS_PROXY, HTTP_PROXY and NO_PROXY for the server, or None."""
    url = urlsplit(server)
    # NO_PROXY contains IPv6 addresses without the brackets of URLs.
    direct = proxy_bypass(url.netloc) or proxy_bypass(url.hostname or "")
    return None if direct else getproxies().get(url.scheme)
