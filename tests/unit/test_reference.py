"""Names of images: completed, shortened and refused by docker's rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfs.errors import InvalidError
from layerfs.reference import Reference

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("debian", "docker.io/library/debian:latest", "debian:latest"),
        ("debian:12", "docker.io/library/debian:12", "debian:12"),
        ("index.docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
        ("docker.io/library/debian:12", "docker.io/library/debian:12", "debian:12"),
        ("me/app", "docker.io/me/app:latest", "me/app:latest"),
        ("localhost/app:1", "localhost/app:1", "localhost/app:1"),
        ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app:latest"),
        ("quay.io/a/b/c:v1.0_x", "quay.io/a/b/c:v1.0_x", "quay.io/a/b/c:v1.0_x"),
        ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
        ("Host/app", "Host/app:latest", "Host/app:latest"),
        ("a__b/c--d/e.f", "docker.io/a__b/c--d/e.f:latest", "a__b/c--d/e.f:latest"),
        (f"debian@{DIGEST}", f"docker.io/library/debian@{DIGEST}", f"debian@{DIGEST}"),
        (f"debian:12@{DIGEST}", f"docker.io/library/debian:12@{DIGEST}", f"debian:12@{DIGEST}"),
        ("docker.io/library/x/y", "docker.io/library/x/y:latest", "x/y:latest"),
    ],
)
def test_names_are_completed_and_shortened(text: str, full: str, familiar: str) -> None:
    if text == "docker.io/library/x/y":
        familiar = "library/x/y:latest"  # shortened further it would mean docker.io/x/y
    reference = Reference.parse(text)
    assert str(reference) == full
    assert reference.familiar() == familiar
    assert Reference.parse(reference.familiar()) == reference
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    ["", ":12", "debian:", "Debian", "debian:-x", "debian:" + "x" * 129, "a//b", "/a", "a/", "a b", "-a",
     "a-", "a___b", "a..b", "a@", f"a@{DIGEST}0", "a@sha256:00", "ab" * 32, "x" * 256, "host:port/a",
     "a\n", "a:1\n", "quay.io/A", "..", "docker.io/../a", "a.b-/c"],
)  # fmt: skip
def test_what_docker_refuses_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        Reference.parse(text)


def test_an_upper_case_repository_gets_a_hint() -> None:
    with pytest.raises(InvalidError) as caught:
        Reference.parse("quay.io/Me/app")
    assert caught.value.hint == "a repository's name is lower case"


@given(st.text(alphabet="abzAZ019._-/:@[]\n", max_size=30))
def test_any_text_is_a_name_that_survives_or_invalid(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidError:
        return
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar()) == reference
