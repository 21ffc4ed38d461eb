"""Tests of which token servers get a password; names of the network are given, as tests have none."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from layerfs.errors import RegistryError, UntrustedError
from layerfs.registry.answer import Answer
from layerfs.registry.challenge import Challenge
from layerfs.registry.connections import Trust
from layerfs.registry.credentials import Credentials
from layerfs.registry.origin import Origin
from layerfs.registry.tokens import Doorkeeper, scope

NAMES = {
    "registry.example.com": ["93.184.216.34"],
    "auth.example.com": ["93.184.216.35"],
    "inside.example.com": ["10.1.2.3"],
    "both.example.com": ["93.184.216.36", "192.168.0.1"],
    "link.example.com": ["fe80::1%eth0"],
    "registry.corp": ["10.0.0.1"],
}


class Sent(Exception):
    """The token server was asked, with our password."""


def ask(registry: str, realm: str) -> None:
    def fetch(method: str, url: str, *, headers: Mapping[str, str], body: bytes | None = None) -> Answer:
        assert headers["Authorization"].startswith("Basic ")
        raise Sent(url)

    door = Doorkeeper(
        registry, Origin.of(f"https://{registry}"), Credentials("alice", "secret"), fetch,
        trust=Trust(), resolve=lambda name: NAMES.get(name, []),
    )  # fmt: skip
    challenge = Challenge("bearer", {"realm": realm, "service": "x"})
    scopes = frozenset({scope("app", ("pull",))})
    door.answer([challenge], scopes, None, RegistryError("refused", status=401))


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("registry.example.com", "https://auth.example.com/token"),
        ("registry.example.com", "https://registry.example.com/token"),
        ("registry.example.com", "https://registry.example.com:8443/token"),
        ("registry.example.com", "https://unknown.example.com/token"),
        ("registry.corp", "https://inside.example.com/token"),
    ],
)
def test_a_token_server_gets_the_password(registry: str, realm: str) -> None:
    with pytest.raises(Sent, match=r"scope=repository%3Aapp%3Apull"):
        ask(registry, realm)


@pytest.mark.parametrize(
    "realm",
    [
        "https://inside.example.com/token",
        "https://both.example.com/token",
        "https://link.example.com/token",
        "https://10.0.0.1/token",
        "https://93.184.216.34/token",
        "https://localhost/token",
        "http://auth.example.com/token",
        "http://registry.example.com/token",
        "https://alice@auth.example.com/token",
    ],
)
def test_what_a_registry_may_not_name_gets_nothing(realm: str) -> None:
    with pytest.raises(UntrustedError):
        ask("registry.example.com", realm)
