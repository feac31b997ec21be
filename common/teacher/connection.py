"""The HTTP connection to a teacher."""

import asyncio
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
import openai

from common.errors import DistillError, InputError
from common.quota.protocol import Headers
from common.sections import TeacherSettings
from common.teacher.address import (
    SHORTEST_IN_ANSWER,
    Secrets,
    find_certificates,
    is_local,
    make_headers,
)
from common.teacher.rate_limits import parse_number, parse_retry_after, parse_seconds, read_headers

_CHECK_ATTEMPTS, _CHECK_SECONDS, _LONGEST_SLEEP_SECONDS = 3, 10.0, 3.0
_WRONG_ADDRESS = (
    aiohttp.ClientConnectorDNSError,
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ClientSSLError,
    aiohttp.ClientProxyConnectionError,
    aiohttp.InvalidURL,
)
"""What no time mends."""
_METHOD_KEEPING = (307, 308)
"""Redirects after which a POST stays one."""
_COST_HEADER = "x-litellm-response-cost"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Response:
    """A response, or the lack of one (status 0).

    `retry_after` is in seconds; `cost_usd` is what a gateway's header tells.
    """

    status: int
    text: str
    headers: Headers | None = None
    retry_after: float | None = None
    was_sent: bool = True
    cost_usd: float | None = None

    @property
    def may_be_paid(self) -> bool:
        """Whether the provider may charge for it; a timeout may have been answered."""
        return self.was_sent and self.status in (0, 200)


class Connection:
    """A pool of connections to one API. Use it in one event loop."""

    def __init__(self, settings: TeacherSettings, url: str) -> None:
        self._settings, self._parts = settings, urlsplit(url)
        self._is_local, self._secrets = is_local(settings, url), Secrets(settings)
        slots = settings.max_concurrency
        # The package's transport and headers, without its request options, retries and models,
        # which take more CPU time than everything else (tests/benchmarks/label.py).
        self._http = openai.DefaultAioHttpClient(
            timeout=None,  # `post` limits the whole call
            follow_redirects=False,
            limits=httpx2.Limits(max_connections=slots, max_keepalive_connections=slots),
            trust_env=not self._is_local,  # a proxy cannot reach it
            verify=find_certificates(),
        )
        client = openai.AsyncOpenAI(base_url=url, api_key="none", http_client=self._http)
        defaults = {n: v for n, v in client.default_headers.items() if isinstance(v, str)}
        self._headers = httpx2.Headers(defaults)
        self._headers.pop("authorization", None)
        self._headers.update(make_headers(settings))

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def check(self) -> str:
        """The listing of models, or what else answers: it is not judged here.

        A server that refuses connections may be starting, and is waited for.

        Raises:
            InputError: the host is unknown, or its certificate is not trusted.
            DistillError: nothing answers in `teacher.startup_seconds`.
        """
        url, longest = self._make_url("/models"), self._settings.startup_seconds
        begun, attempts = time.monotonic(), 0
        while True:
            try:
                async with asyncio.timeout(_CHECK_SECONDS):
                    response = await self._http.get(url, headers=self._headers)
                    return self._secrets.redact(response.text)
            except TimeoutError:
                return ""
            except httpx2.HTTPError as error:
                may_start = not isinstance(error.__cause__, _WRONG_ADDRESS)
                reason = self._describe(error)
            attempts += 1
            if attempts >= _CHECK_ATTEMPTS:
                if not may_start or time.monotonic() - begun >= longest:
                    raise self._explain_silence(reason, may_start)
                if attempts == _CHECK_ATTEMPTS:
                    where = f"nothing answers at {self._settings.base_url} ({reason})"
                    log.info("%s; waiting up to %g s for it to start", where, longest)
            await asyncio.sleep(min(attempts - 0.5, _LONGEST_SLEEP_SECONDS))

    def _explain_silence(self, reason: str, may_start: bool) -> DistillError:
        is_container = self._is_local and Path("/.dockerenv").exists()
        hint = "; localhost is this container itself" if is_container else ""
        name = f"DISTILL_TEACHER__BASE_URL={self._settings.base_url!r}"
        if not may_start:
            return InputError(f"{name}: nothing answers there ({reason}); correct the URL{hint}")
        seconds = self._settings.startup_seconds
        return DistillError(
            f"{name}: nothing answers there in {seconds:g} s ({reason}); correct the URL, start "
            f"the server, or raise DISTILL_TEACHER__STARTUP_SECONDS{hint}"
        )

    async def _post(self, url: str, content: bytes) -> httpx2.Response:
        """Follows one redirect, if it keeps the method and stays on the server: secrets go along.

        Raises an httpx2.HTTPError.
        """
        response = await self._http.post(url, content=content, headers=self._headers)
        place = response.headers.get("location", "")
        if response.status_code not in _METHOD_KEEPING or not place:
            return response
        target, parts = urljoin(url, place), self._parts
        if urlsplit(target)[:2] != parts[:2]:
            return response
        return await self._http.post(target, content=content, headers=self._headers)

    async def post(self, path: str, content: bytes) -> Response:
        """Sends a request; never raises for what the network or the server does."""
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                response = await self._post(self._make_url(path), content)
        except TimeoutError:
            return Response(0, f"timeout: no answer in {self._settings.timeout_seconds:g} s")
        except httpx2.HTTPError as error:
            was_sent = not isinstance(error.__cause__, aiohttp.ClientConnectorError)
            return Response(0, f"connection: {self._describe(error)}", was_sent=was_sent)
        if response.is_redirect:
            place = response.headers.get("location", "")
            return Response(response.status_code, self._secrets.redact(f"to {place}"))
        status = 200 if response.is_success else response.status_code
        text = response.content.decode("utf-8", "replace")  # JSON is UTF-8
        wait = parse_retry_after(response.headers.get("retry-after"))
        if (milliseconds := parse_seconds(response.headers.get("retry-after-ms"))) is not None:
            wait = milliseconds / 1000
        answer = (SHORTEST_IN_ANSWER,) if status == 200 and '"error"' not in text else ()
        return Response(
            status,
            self._secrets.redact(text, *answer),
            read_headers(response.headers.raw),
            wait,
            cost_usd=parse_number(response.headers.get(_COST_HEADER)),
        )

    def _make_url(self, path: str) -> str:
        parts = self._parts
        return urlunsplit(parts._replace(path=parts.path.rstrip("/") + path))

    def _describe(self, error: BaseException) -> str:
        cause = error.__cause__ or error
        text = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
        if isinstance(cause, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
            text += "; SSL_CERT_FILE names a file with the certificates to trust"
        elif proxy := self._find_proxy():
            text += f" (through the proxy {proxy})"
        return self._secrets.redact(text)

    def _find_proxy(self) -> str:
        """The proxy's address without its password, from the environment; empty if none."""
        host = self._parts.hostname or ""
        if self._is_local or proxy_bypass(host):
            return ""
        proxies = getproxies()
        found = proxies.get(self._parts.scheme) or proxies.get("all") or ""
        return re.sub(r"//[^/@]*@", "//", found)
