"""One repository of a registry: requests below its name, at its mirrors first where it has some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from layerfs.errors import BudgetError, LayerfsError, NotFoundError, RegistryError
from layerfs.registry import mirrors, problems
from layerfs.registry.answer import Answer
from layerfs.registry.origin import Origin, check_way, shown
from layerfs.registry.session import Request, Session
from layerfs.registry.tokens import scope

if TYPE_CHECKING:
    from layerfs.reference import Reference
    from layerfs.registry.mirrors import Endpoint
    from layerfs.registry.session import Body


class Repository:
    """A repository; thread-safe as its session is, and of no use after it."""

    def __init__(self, session: Session, reference: Reference) -> None:
        """Use `Session.repository`."""
        self.session = session
        self.reference = reference
        self._endpoints = mirrors.endpoints(reference, session.options)
        self._useless = _Useless(self._endpoints) if len(self._endpoints) > 1 else None

    def hurry(self, count: int) -> None:
        """Have connections made to where the next requests go (`Session.hurry`)."""
        self.session.hurry(self._endpoints[0], count)

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Iterable[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        actions: tuple[str, ...] = ("pull",),
        expect: tuple[int, ...] = (200,),
        also_from: str | None = None,
        retry: bool = True,
    ) -> Answer:
        """Send a request and give its answer, the body still to be read; the caller closes it.

        Args:
            method: of HTTP.
            path: below ``/v2/REPOSITORY/``, such as ``blobs/sha256:...``; or an absolute URL out of an answer
                (`Answer.location`) or a descriptor, which gets credentials only if it is the registry's own.
            query: further parameters.
            headers: further header fields.
            body: bytes, or what gives an iterable of bytes whenever it is called; a bare iterable is sent
                once and never again. Without a Content-Length header an iterable is sent in chunks.
            actions: what a token must allow: ``pull``, ``push``, ``delete``.
            expect: the statuses that are answers; redirects are followed unless one of them is expected.
            also_from: another repository of the registry that is to be read (to mount a blob from).
            retry: repeat the request where that may help; False for one that must not be made twice.

        Raises:
            NotFoundError: the registry does not have it.
            AuthenticationError: it wants credentials, other ones, or does not let these do it.
            RateLimitError: it was asked too often, and wants to be left alone for longer than we wait.
            RegistryError: any other answer.
            UnreachableError: none.
            UntrustedError: an answer sends us where we do not go.
        """
        absolute = path.startswith(("https://", "http://"))
        places = self._places(method, path, actions) if not absolute else self._endpoints[-1:]
        for place in places[:-1]:
            if self._useless is not None and place in self._useless:
                continue
            try:
                return self._send_to(
                    place, method, path, query, headers, body, actions,
                    tuple(status for status in expect if status < 400), also_from, False,
                )  # fmt: skip
            except NotFoundError:
                continue
            except LayerfsError as error:
                if self._useless is not None and self._useless.add(place):
                    self.session.warn(f"the mirror {place.host} is not used: {error}")
        return self._send_to(
            places[-1], method, path, query, headers, body, actions, expect, also_from, retry
        )

    def fetch(
        self,
        path: str,
        *,
        limit: int,
        query: Iterable[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        expect: tuple[int, ...] = (200,),
    ) -> tuple[Answer, bytes]:
        """Get a small document as a whole, again if it is cut; give its answer's head, and its bytes.

        Raises:
            BudgetError: it has more than `limit` bytes.
            LayerfsError: what `send` raises.
        """
        attempts = self.session.options.attempts
        for attempt in range(attempts):
            with self.send("GET", path, query=query, headers=headers, expect=expect) as answer:
                coding = answer.headers.get("Content-Encoding", "identity")
                if coding != "identity":
                    raise RegistryError(
                        f"{shown(answer.url)} comes in {problems.clean(coding)[:40]}, which nobody asked for",
                        status=answer.status,
                        hint="a proxy before the registry may do that: have it left out",
                    )
                if answer.length is not None and answer.length > limit:
                    raise BudgetError(
                        f"{shown(answer.url)} has {answer.length} bytes; at most {limit} are read"
                    )
                try:
                    return answer, answer.data(limit)
                except problems.Interrupted:
                    if attempt + 1 == attempts:
                        raise
            self.session.pause(attempt)
        raise AssertionError("the last attempt returns or raises")

    def _places(self, method: str, path: str, actions: tuple[str, ...]) -> tuple[Endpoint, ...]:
        # Lists are the registry's own: a mirror has what was asked for through it.
        kept = path.startswith(("manifests/", "blobs/"))
        if not kept or method not in ("GET", "HEAD") or actions != ("pull",):
            return self._endpoints[-1:]
        by_tag = path.startswith("manifests/") and ":" not in path
        return tuple(place for place in self._endpoints if (place.tags if by_tag else place.digests))

    def _send_to(
        self,
        place: Endpoint,
        method: str,
        path: str,
        query: Iterable[tuple[str, str]],
        headers: Mapping[str, str] | None,
        body: Body,
        actions: tuple[str, ...],
        expect: tuple[int, ...],
        also_from: str | None,
        retry: bool,
    ) -> Answer:
        session = self.session
        origin = session.base(place)
        if path.startswith(("https://", "http://")):
            url = _own(path, origin, place.host)
        else:
            url = f"{origin}/v2/{place.repository}/{path}"
        if parameters := urlencode(list(query)):
            url += ("&" if "?" in url else "?") + parameters
        scopes = {scope(place.repository, actions)}
        if also_from is not None:
            scopes.add(scope(also_from, ("pull",)))
        door = session.door(place, origin)
        asked = problems.Asked(
            place.host, place.repository, shown(path) if path.startswith("http") else path, actions,
            door.credentials is not None,
        )  # fmt: skip
        request = Request(method, url, headers or {}, body, frozenset(scopes), asked, expect, retry)
        return session.perform(request, place, door)


class _Useless:
    """The mirrors that failed in another way than by not having something.

    Threads and forked workers that meet the same failure at once are one: a byte of shared memory for each
    mirror says so to all of them.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        import mmap

        self._places = {place: number for number, place in enumerate(endpoints)}
        self._shared = mmap.mmap(-1, len(endpoints))
        self._mine: dict[Endpoint, object] = {}

    def __contains__(self, place: Endpoint) -> bool:
        return self._shared[self._places[place]] != 0

    def add(self, place: Endpoint) -> bool:
        """Note a mirror; say whether it was new."""
        # No lock: a fork could copy it while it is held. Of threads, setdefault() chooses one.
        first = object()
        new = place not in self and self._mine.setdefault(place, first) is first
        self._shared[self._places[place]] = 1
        return new


def _own(url: str, origin: Origin, host: str) -> str:
    """Check a URL that an answer gave; one of the registry itself stays with TLS.

    Raises:
        UntrustedError: it leads where we do not go.
    """
    to = Origin.of(url)
    if origin.scheme == "https" and to == ("http", origin.host, 80):
        # A registry behind a proxy that ends TLS may not know that it is spoken to by HTTPS.
        _, slash, rest = url.partition("://")[2].partition("/")
        return f"{origin}{slash}{rest}"
    check_way(origin, url, host)
    return url
