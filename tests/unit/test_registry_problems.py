"""Tests of answers that the fault table (tests/fault/test_registry_faults.py) has no server for."""

from __future__ import annotations

import socket

import pytest
from urllib3.exceptions import NameResolutionError

from layerfs.errors import AuthenticationError, NotFoundError, RateLimitError, RegistryError
from layerfs.registry.problems import Asked, clean, from_answer, from_exception, retry_after

HUB = Asked("docker.io", "library/debian", "manifests/12")
PUSH = Asked("registry", "app", "blobs/uploads/", ("pull", "push"), signed_in=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", None), ("0", 0.0), ("120", 120.0), ("soon", None), ("-5", None), ("1e9", None), ("9" * 50, None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 37.0), ("Sun, 06 Nov 1994 08:48:37 GMT", 0.0),
    ],
)  # fmt: skip
def test_how_long_to_wait_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    assert retry_after({"Retry-After": text}, now=784111740.0) == seconds


def test_docker_hub_gives_more_to_whoever_signs_in() -> None:
    body = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}'
    error = from_answer(429, {}, body, HUB)
    assert isinstance(error, RateLimitError)
    assert "layerfs login docker.io" in (error.hint or "")


@pytest.mark.parametrize(
    ("status", "body", "asked", "kind", "message"),
    [
        (401, b"", HUB, AuthenticationError, "docker.io/library/debian is not for everybody"),
        (401, b"", PUSH, AuthenticationError, "does not let us push to app with these credentials"),
        (403, b"<html>", PUSH, AuthenticationError, "does not let us push to app"),
        (413, b"<html>", PUSH, RegistryError, "no upload of this size"),
        (400, b"Client sent an HTTP request to an HTTPS server.", HUB, RegistryError, "speaks HTTPS"),
        (407, b"", HUB, RegistryError, "the proxy wants a user name"),
        (400, b'{"errors":[{"code":"DIGEST_INVALID","message":"no"}]}', PUSH, RegistryError, "HTTP 400): no"),
        (404, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}', PUSH, RegistryError, "forgotten the upload"),
        (404, b'{"errors":[{"code":"BLOB_UNKNOWN"}]}', HUB._replace(what="blobs/sha256:a"), NotFoundError,
         "lacks the blob sha256:a"),
        (418, b"[]", HUB, RegistryError, "refuses a request about library/debian (HTTP 418)"),
        (500, b'{"errors": 5, "message": ["x"]}', HUB, RegistryError, "failed (HTTP 500)"),
        (500, b"[" * 100_000, HUB, RegistryError, "failed (HTTP 500)"),
    ],
)  # fmt: skip
def test_each_answer_is_one_message(
    status: int, body: bytes, asked: Asked, kind: type[Exception], message: str
) -> None:
    error = from_answer(status, {}, body, asked)
    assert isinstance(error, kind)
    assert message in str(error)
    assert not isinstance(error, RegistryError) or error.status == status


@pytest.mark.parametrize(
    ("number", "message", "lasting"),
    [(socket.EAI_AGAIN, "no name server answers", False), (socket.EAI_NONAME, "there is no host", True)],
)
def test_names_that_are_not_found_are_told_from_name_servers_that_are_silent(
    number: int, message: str, lasting: bool
) -> None:
    reason = socket.gaierror(number, "of the system")
    failed = NameResolutionError("host", None, reason)  # type: ignore[arg-type]
    failed.__cause__ = reason
    error = from_exception(failed, "host")
    assert message in str(error)
    assert error.lasting == lasting


def test_a_strangers_words_are_one_bounded_line_without_secrets() -> None:
    assert clean("a\x1b[1m\n\tb secret", ["secret"]) == "a [1m b ***"
    assert len(clean("x" * 10_000)) == 300
