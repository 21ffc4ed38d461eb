"""Proving credentials to a registry, before they are kept."""

from __future__ import annotations

from layerfs.errors import InvalidError
from layerfs.reference import Reference
from layerfs.registry import problems
from layerfs.registry.credentials import Credentials
from layerfs.registry.mirrors import Endpoint
from layerfs.registry.session import Request, Session


def registry_of(text: str) -> str:
    """Read the name of a registry, ``HOST[:PORT][/NAMESPACE]``, as people write it; "" is Docker Hub.

    Raises:
        InvalidError: it is none.
    """
    name = text.partition("://")[2] if text.startswith(("https://", "http://", "docker://")) else text
    host, _, namespace = name.strip("/").partition("/")
    if namespace.rstrip("/") in ("v1", "v2"):
        namespace = ""
    try:
        reference = Reference.parse(f"{host or 'docker.io'}/{namespace or 'any'}")
    except InvalidError:
        raise InvalidError(f"{text[:200]!r} cannot be a registry", hint="HOST[:PORT] is its form") from None
    if (host and reference.host not in (host, "docker.io")) or reference.tag != "latest":
        raise InvalidError(f"{text[:200]!r} cannot be a registry", hint="HOST[:PORT] is its form")
    return f"{reference.host}/{namespace}" if namespace else reference.host


def check(session: Session, name: str, credentials: Credentials) -> bool:
    """Prove to a registry who we are (distribution-spec, "Determining Support").

    Args:
        session: with the options that hold for it.
        name: what `registry_of` gives.
        credentials: a user's.

    Returns:
        Whether the registry asked for them at all.

    Raises:
        AuthenticationError: it does not accept them.
        LayerfsError: it cannot be asked, or is no registry.
    """
    host = name.partition("/")[0]
    endpoint = Endpoint(host, "")
    origin = session.base(endpoint)
    door = session.door(endpoint, origin, given=credentials)
    asked = problems.Asked(host, signed_in=True)
    request = Request("GET", f"{origin}/v2/", {}, None, frozenset(), asked, (200, 404), True)
    with session.perform(request, endpoint, door) as answer:
        if answer.status == 404:
            raise problems.not_a_registry(host, answer.status)
    return door.was_asked
