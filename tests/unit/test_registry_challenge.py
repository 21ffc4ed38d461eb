"""Tests of WWW-Authenticate as servers write it, and of URLs and addresses."""

from __future__ import annotations

import pytest

from layerfs.errors import UntrustedError
from layerfs.registry.challenge import Challenge, parse
from layerfs.registry.origin import Origin, address, check_way, is_loopback, shown


def test_the_challenge_of_docker_hub_is_read() -> None:
    value = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"'
    assert parse([value]) == [
        Challenge(
            "bearer",
            {
                "realm": "https://auth.docker.io/token",
                "service": "registry.docker.io",
                "scope": "repository:a/b:pull,push",
            },
        )
    ]


@pytest.mark.parametrize(
    ("values", "schemes"),
    [
        (['Basic realm="x"', 'Bearer realm="y"'], ["basic", "bearer"]),
        (['Basic realm="x", Bearer realm="y", service=z'], ["basic", "bearer"]),
        (["Negotiate", "NTLM"], ["negotiate", "ntlm"]),
        (["Negotiate, Basic realm=x"], ["negotiate", "basic"]),
        (["bearer REALM=https://a/b"], ["bearer"]),
        ([""], []),
        (['="'], []),
        (["Basic realm=" + "a" * 100_000], ["basic"]),
    ],
)
def test_several_challenges_are_told_apart(values: list[str], schemes: list[str]) -> None:
    assert [challenge.scheme for challenge in parse(values)] == schemes


def test_quoted_values_hold_anything() -> None:
    assert parse([r'Basic realm="a \"quoted\", word=x"'])[0].parameters["realm"] == 'a "quoted", word=x'


def test_an_origin_is_scheme_host_and_port() -> None:
    assert Origin.of("https://Example.COM/v2/?a=b") == ("https", "example.com", 443)
    assert str(Origin.of("http://[::1]:5000/")) == "http://[::1]:5000"


@pytest.mark.parametrize(
    "url", ["ftp://a/b", "/relative", "https://", "https://user:secret@host/x", "http://a:99999/"]
)
def test_no_other_urls_are_followed(url: str) -> None:
    with pytest.raises(UntrustedError) as refused:
        Origin.of(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.1", True), ("2130706433", True), ("0x7f.1", True), ("::1", True),
        ("::ffff:127.0.0.1", True), ("localhost", True), ("a.localhost", True), ("10.0.0.1", False),
        ("example.com", False), ("127.example.com", False),
    ],
)  # fmt: skip
def test_this_machine_is_known_in_every_spelling(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


def test_names_are_no_addresses() -> None:
    assert address("cafe.example") is None
    assert address("1and1.example") is None


def test_urls_are_shown_without_what_may_be_secret() -> None:
    assert shown("https://user:secret@host/path?X-Amz-Signature=secret#secret") == "https://host/path"
    assert shown("https://host/\x1b[31m\n") == "https://host/?[31m?"


FAR = Origin.of("https://registry.example.com")


@pytest.mark.parametrize(
    "target",
    [
        "http://cdn.example.com/x",
        "https://127.0.0.1/x",
        "https://localhost:8000/x",
        "https://169.254.169.254/latest/meta-data",
        "https://2852039166/latest/meta-data",
        "https://[fe80::1]/x",
        "https://0/x",
    ],
)
def test_a_registry_elsewhere_sends_nobody_here(target: str) -> None:
    with pytest.raises(UntrustedError, match="registry sends us"):
        check_way(FAR, target, "registry")


@pytest.mark.parametrize("target", ["https://cdn.example.com/x", "https://10.1.2.3/x"])
def test_a_registry_may_send_us_to_other_hosts(target: str) -> None:
    assert check_way(FAR, target, "registry") == Origin.of(target)
    here = Origin.of("http://localhost:5000")
    assert check_way(here, "http://127.0.0.1:9/x", "localhost:5000").port == 9
