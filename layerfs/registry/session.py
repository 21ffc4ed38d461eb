"""A session with registries: connections, credentials, tokens, redirects and repeated requests."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from layerfs.errors import (
    LayerfsError,
    RegistryError,
    UnreachableError,
)
from layerfs.registry import certificates, challenge, credential_files, problems, proxies
from layerfs.registry.answer import Answer
from layerfs.registry.connections import Connections, Trust
from layerfs.registry.origin import Origin, check_way, is_loopback, shown, split_host
from layerfs.registry.settings import Options
from layerfs.registry.tokens import Doorkeeper
from layerfs.value import replace

if TYPE_CHECKING:
    from layerfs.reference import Reference
    from layerfs.registry.credentials import Credentials
    from layerfs.registry.mirrors import Endpoint
    from layerfs.registry.repository import Repository
    from layerfs.registry.tokens import Fetch

    Body = bytes | Callable[[], Iterable[bytes]] | Iterable[bytes] | None

HUB: Final = "docker.io"
HUB_SERVER: Final = "registry-1.docker.io"
REDIRECTS: Final = (301, 302, 303, 307, 308)
# What may go well a moment later: a gateway's trouble, a registry that is starting, too many requests.
PASSING: Final = (408, 425, 429, 500, 502, 503, 504)
_MOST_REDIRECTS: Final = 8
# Whoever waits for longer, in seconds, is told why.
_SILENT: Final = 5
# How long, in seconds, the end of a session waits for connections that nobody uses.
_PATIENCE: Final = 2.0
_MOST_ERROR_DATA: Final = 64 << 10


class Request(NamedTuple):
    """One request below a registry, or to a URL that one gave us."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: Body
    scopes: frozenset[str]
    asked: problems.Asked
    expect: tuple[int, ...]
    again: bool

    def data(self) -> bytes | Iterable[bytes] | None:
        """Give the body to send, from its beginning if it can be sent more than once."""
        return self.body() if callable(self.body) else self.body

    @property
    def repeats(self) -> bool:
        """Say whether the body can be sent more than once."""
        return self.body is None or isinstance(self.body, bytes) or callable(self.body)


class _State:
    """What one process has of a session; a child begins with connections of its own and keeps the tokens."""

    def __init__(self, session: Session, before: _State | None = None) -> None:
        self.process = os.getpid()
        self.connections: Connections = Connections(session.options, before.connections if before else None)
        self.lock = threading.Lock()
        self.finding = threading.RLock()
        self.problems: dict[tuple[str, bool], LayerfsError | OSError] = {}
        self.origins: dict[tuple[str, bool], Origin] = dict(before.origins) if before else {}
        # Servers that gave an answer: one that refuses connections after that may be starting again.
        self.answered: set[Origin] = set(before.answered) if before else set()
        self.credentials: dict[Endpoint, Credentials | None] = dict(before.credentials) if before else {}
        self.doors: dict[tuple[Origin, Trust, Credentials | None], Doorkeeper] = {}
        # Closed or collected in a child, its sockets' numbers could by then be another's.
        self.before = before
        if before is not None:
            for key, door in list(before.doors.items()):
                self.doors[key] = door.copy(session.fetcher(key[0], door.trust))


class Session:
    """Connections to registries and what was learned of them; thread-safe, a context manager.

    After a fork the child has connections of its own and leaves its parent's alone.
    """

    def __init__(
        self, options: Options | None = None, *, warn: Callable[[str], None] = lambda message: None
    ) -> None:
        """Begin; nothing is opened before the first request.

        Args:
            options: how registries are spoken with.
            warn: told of what is odd, such as a mirror that fails.

        Raises:
            TypeError: the options are something else.
        """
        if not isinstance(options, Options | None):
            raise TypeError(f"options are layerfs.Options, and no {type(options).__name__}")
        self.options = options or Options()
        self.warn = warn
        self._hurry = 0
        self._hurrying: list[threading.Thread] = []
        self._directories: dict[str, Path | None] = {}
        self._state = _State(self)

    def repository(self, reference: Reference) -> Repository:
        """Give the repository that a reference names; nothing is asked yet.

        Raises:
            InvalidError: a configuration file of registries cannot be read.
            UntrustedError: that configuration blocks it.
        """
        from layerfs.registry.repository import Repository

        return Repository(self, reference)

    def hurry(self, endpoint: Endpoint, count: int) -> None:
        """Begin to find out how a registry is spoken with, and have connections made then, in other threads.

        They wait for requests that come; without this each request makes its own.
        """
        import urllib3  # noqa: F401  so that the caller's next imports do not hold up the thread

        self._hurry = count
        thread = threading.Thread(target=self._find_out, args=(endpoint,), daemon=True)
        self._hurrying.append(thread)
        thread.start()

    def _find_out(self, endpoint: Endpoint) -> None:
        state = self.state
        with state.finding:
            try:
                self.base(endpoint)
            except (LayerfsError, OSError) as error:
                # Whoever makes the next request hears of it.
                state.problems[endpoint.host, self.is_lax(endpoint)] = error

    def close(self) -> None:
        """Close all connections; idempotent."""
        if self._state.process == os.getpid():
            end = time.monotonic() + _PATIENCE
            for thread in self._hurrying:
                thread.join(max(0.0, end - time.monotonic()))
            self._state.connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- for Repository and login

    @property
    def state(self) -> _State:
        """The part of this process."""
        if self._state.process != os.getpid():
            self._state = _State(self, self._state)
        return self._state

    def is_lax(self, endpoint: Endpoint) -> bool:
        """Say whether any certificate, and plain HTTP, will do for a registry."""
        verify = self.options.tls_verify
        return endpoint.insecure if verify is None else not verify

    def base(self, endpoint: Endpoint) -> Origin:
        """Say where a registry is; for one that may speak plain HTTP, what it speaks is found out.

        Raises:
            UnreachableError: it does not answer.
        """
        state, lax = self.state, self.is_lax(endpoint)
        key = (endpoint.host, lax)
        found = state.origins.get(key)
        if found is None:
            # One is enough to find out.
            with state.finding:
                if key in state.problems:
                    raise state.problems.pop(key)
                found = state.origins.get(key) or self._base(endpoint, lax=lax)
                state.origins[key] = found
        return found

    def _base(self, endpoint: Endpoint, *, lax: bool) -> Origin:
        name, port = split_host(HUB_SERVER if endpoint.host == HUB else endpoint.host)
        origin = Origin("https", name, port or 443)
        if lax or (is_loopback(name) and self.options.tls_verify is None):
            plain = Origin("http", name, port or 80)
            if self._hurry and port is not None:
                self.state.connections.connect(plain, Trust(), 1)
            try:
                self._probe(origin, endpoint)
            except problems.PlainHttpError:
                origin = plain
            except UnreachableError as error:
                if port is not None or not (lax or isinstance(error, problems.RefusedError)):
                    raise
                self._probe(plain, endpoint)
                origin = plain
        if self._hurry:
            self.state.connections.connect(origin, self.trust(endpoint, origin), self._hurry)
        return origin

    def _probe(self, origin: Origin, endpoint: Endpoint) -> None:
        # Nothing is told to the server and nothing it says is believed: its certificate is looked at when the
        # first real request is made, and where there is none the authorities need not be loaded.
        trust = self.trust(endpoint, origin)._replace(verify=False)
        self._answer("GET", f"{origin}/v2/", origin=origin, trust=trust, host=endpoint.host).drain()

    def trust(self, endpoint: Endpoint, to: Origin) -> Trust:
        """Say how a server proves itself that a registry, or an answer of it, leads to."""
        host = endpoint.host
        if host not in self._directories:
            self._directories[host] = certificates.directory_for(host, self.options)
        directory = self._directories[host]
        own = split_host(HUB_SERVER if endpoint.host == HUB else endpoint.host)[0] == to.host
        return Trust(not self.is_lax(endpoint), directory, client=own)

    def door(self, endpoint: Endpoint, origin: Origin, *, given: Credentials | None = None) -> Doorkeeper:
        """Give the authorization for a repository: of `given`, else of the credentials found for it."""
        credentials = given or self._credentials(endpoint)
        trust = self.trust(endpoint, origin)
        state = self.state
        with state.lock:
            found = state.doors.get((origin, trust, credentials))
            if found is None:
                # Names that only the proxy knows are not asked for here.
                resolve = None if proxies.proxy_for(origin, self.options.environment) else _addresses
                fetch = self.fetcher(origin, trust)
                found = Doorkeeper(endpoint.host, origin, credentials, fetch, trust=trust, resolve=resolve)
                state.doors[origin, trust, credentials] = found
            return found

    def fetcher(self, registry: Origin, trust: Trust) -> Fetch:
        """Make what asks a token server, on behalf of a registry."""

        def fetch(method: str, url: str, *, headers: Mapping[str, str], body: bytes | None = None) -> Answer:
            origin = Origin.of(url)
            own = trust._replace(client=trust.client and origin.host == registry.host)
            for attempt in range(self.options.attempts):
                last = attempt + 1 == self.options.attempts
                try:
                    answer = self._answer(
                        method, url, origin=origin, trust=own, host=origin.authority, headers=headers,
                        body=body,
                    )  # fmt: skip
                except UnreachableError as error:
                    # Whoever needs the token must not begin all of this again.
                    error.lasting = error.lasting or last
                    if error.lasting:
                        raise
                    self.pause(attempt)
                    continue
                if last or answer.status not in PASSING or not self._wait(answer, attempt, origin.authority):
                    return answer
            raise AssertionError("there is no attempt without an end")

        return fetch

    def perform(self, request: Request, endpoint: Endpoint, door: Doorkeeper) -> Answer:
        """Carry a request out: let in, sent where the answer says, repeated while that can help.

        Raises:
            LayerfsError: there was no answer, or none of those that are expected.
        """
        attempts = self.options.attempts if request.again and request.repeats else 1
        attempt = 0
        while True:
            attempt += 1
            last = attempt >= attempts
            try:
                answer = self._once(request, endpoint, door)
            except UnreachableError as error:
                if last or error.lasting:
                    raise problems.of_request(error, request.asked) from error.__cause__
                self.pause(attempt - 1)
                continue
            if answer.status in request.expect:
                return answer
            if not last and answer.status in PASSING and self._wait(answer, attempt - 1, endpoint.host):
                continue
            raise self.problem(answer, request.asked, door)

    def problem(self, answer: Answer, asked: problems.Asked, door: Doorkeeper) -> LayerfsError:
        """Say what an answer means that was not expected, and close it."""
        try:
            data = answer.data(_MOST_ERROR_DATA)
        except LayerfsError:
            data = b""
            answer.close()
        return problems.from_answer(answer.status, answer.headers, data, asked, secrets=door.secrets)

    # ---- one request

    def _once(self, request: Request, endpoint: Endpoint, door: Doorkeeper) -> Answer:
        """Send a request, let in where that is asked for, and follow redirects."""
        home = door.origin
        method, url, refused = request.method, request.url, 0
        used: str | None = None
        for _ in range(_MOST_REDIRECTS + 3):
            origin = Origin.of(url)
            headers = dict(request.headers)
            if origin == home:
                used = used or door.authorization(request.scopes)
                if used is not None:
                    headers["Authorization"] = used
            answer = self._answer(
                method, url, origin=origin, trust=self.trust(endpoint, origin), host=_name(origin, endpoint),
                headers=headers, body=request.data(),
            )  # fmt: skip
            if answer.status == 401 and origin == home and refused < 2 and 401 not in request.expect:
                refused += 1
                challenges = challenge.parse(answer.headers.getlist("WWW-Authenticate"))  # type: ignore[attr-defined]
                if not challenges:
                    return answer
                problem = self.problem(answer, request.asked, door)
                used = door.answer(challenges, request.scopes, used, problem)
                if not request.repeats:
                    raise problems.Interrupted(
                        f"{endpoint.host} wanted to be signed in to again in the middle of an upload"
                    )
                continue
            if answer.status not in REDIRECTS or answer.status in request.expect:
                return answer
            target = answer.location()
            answer.drain()
            check_way(origin, target, endpoint.host)
            if method not in ("GET", "HEAD") and (answer.status == 303 or not request.repeats):
                raise RegistryError(
                    f"{endpoint.host} sends an upload to {shown(target)}", status=answer.status,
                    hint="name that host in the image's name if you trust it",
                )  # fmt: skip
            url = target
        raise RegistryError(f"{endpoint.host} redirects without end", status=answer.status)

    def _answer(
        self,
        method: str,
        url: str,
        *,
        origin: Origin,
        trust: Trust,
        host: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterable[bytes] | None = None,
    ) -> Answer:
        from urllib3.exceptions import HTTPError

        sent = {"User-Agent": _agent(), "Accept-Encoding": "identity", **(headers or {})}
        try:
            response = self.state.connections.request(
                method, url, origin=origin, trust=trust, headers=sent, body=body
            )
        except (HTTPError, OSError) as error:
            proxy = proxies.proxy_for(origin, self.options.environment)
            problem = problems.from_exception(error, host, proxy=proxy)
            if isinstance(problem, problems.RefusedError) and origin in self.state.answered:
                problem.lasting = False
            raise problem from error
        self.state.answered.add(origin)
        return Answer(response, url, host=host)

    def _credentials(self, endpoint: Endpoint) -> Credentials | None:
        known = self.state.credentials
        if endpoint not in known:
            # What was given on the command line is for the registry that was named.
            options = replace(self.options, creds=None) if endpoint.is_mirror else self.options
            known[endpoint] = credential_files.find(
                endpoint.host, endpoint.repository, options, warn=self.warn
            )
        return known[endpoint]

    # ---- pauses

    def _wait(self, answer: Answer, attempt: int, host: str) -> bool:
        """Close an answer and pause as long as it wants, or as is usual; False when that is too long."""
        asked = problems.retry_after(answer.headers)
        if asked is not None and asked > self.options.patience:
            return False
        answer.drain()
        if asked is not None and asked > _SILENT:
            self.warn(f"{host} wants to be left alone for {asked:.0f} seconds")
        self.pause(attempt, asked or 0.0)
        return True

    def pause(self, attempt: int, least: float = 0.0) -> None:
        """Wait before a request is made again, longer each time (`attempt` from 0); `least` in seconds."""
        # Clients that failed together must not come back together.
        pause = self.options.backoff * 2**attempt * (0.75 + random.random() / 2)
        time.sleep(max(least, min(pause, self.options.patience)))


def _name(origin: Origin, endpoint: Endpoint) -> str:
    name, _ = split_host(HUB_SERVER if endpoint.host == HUB else endpoint.host)
    return endpoint.host if origin.host == name and endpoint.host != HUB else origin.authority


def _addresses(name: str) -> list[str]:
    """Give the addresses of a name, none when nobody knows it."""
    import socket

    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except OSError:
        return []


def _agent() -> str:
    from layerfs import __version__

    return f"layerfs/{__version__}"
