"""Platforms: spelled in many ways, ordered as containerd orders them."""

from __future__ import annotations

import pytest

from layerfs.errors import InvalidError
from layerfs.oci.platform import Platform


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/i686", "linux/386"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v9.0", "linux/arm64/v9"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("Linux/AMD64", "linux/amd64"),
        ("macos/arm64", "darwin/arm64"),
        ("linux/riscv64", "linux/riscv64"),
    ],
)
def test_spellings_have_one_normal_form(text: str, normal: str) -> None:
    assert str(Platform.parse(text)) == normal


@pytest.mark.parametrize("text", ["", "/", "linux/", "a/b/c/d", "linux/a b", "linux/../x", "linux/amd64\n"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        Platform.parse(text)


def best(wanted: str, *offered: str) -> str | None:
    ranks = [
        (rank, text)
        for text in offered
        if (rank := Platform.parse(wanted).rank(Platform.parse(text))) is not None
    ]
    return min(ranks)[1] if ranks else None


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("arm/v7", ["arm/v5", "arm/v6", "arm64"], "arm/v6"),
        ("arm/v7", ["arm/v8"], None),
        ("arm/v6", ["arm/v7"], None),
        ("arm64", ["arm/v7", "arm64/v8"], "arm64/v8"),
        ("arm64", ["arm/v7", "amd64"], "arm/v7"),
        ("arm64", ["arm64/v9", "arm64/v8.1"], None),
        ("arm64/v9", ["arm64", "arm64/v8.5", "arm64/v8.6"], "arm64/v8.5"),
        ("amd64", ["amd64/v2", "amd64/v1"], "amd64/v1"),
        ("amd64/v3", ["amd64", "amd64/v2", "amd64/v4"], "amd64/v2"),
        ("amd64/v4", ["386", "amd64"], "amd64"),
        ("amd64", ["386"], "386"),
        ("386", ["amd64"], None),
    ],
)
def test_the_nearest_smaller_variant_wins(wanted: str, offered: list[str], chosen: str | None) -> None:
    full = [text if text.count("/") and text.startswith("linux") else f"linux/{text}" for text in offered]
    found = best(f"linux/{wanted}", *full)
    assert found == (None if chosen is None else f"linux/{chosen}")


def test_another_system_or_a_missing_feature_never_fits() -> None:
    host = Platform("linux", "amd64")
    assert host.rank(Platform("windows", "amd64")) is None
    assert host.rank(Platform("unknown", "unknown")) is None
    assert host.rank(Platform("linux", "amd64", os_features=("win32k",))) is None
    assert (
        Platform("windows", "amd64", os_version="10.0.1").rank(
            Platform("windows", "amd64", os_version="10.0.2")
        )
        is None
    )


def test_the_host_runs_its_own_images() -> None:
    assert Platform.host().rank(Platform.host()) == 0
    assert Platform.host().os == "linux"


def test_a_platform_may_be_given_as_text() -> None:
    arm = Platform("linux", "arm64")
    assert Platform.given("linux/aarch64") == Platform.given(arm) == arm
    assert Platform.given(None) is None
    with pytest.raises(TypeError, match="a Platform, or text, and no dict"):
        Platform.given({"os": "linux"})  # type: ignore[arg-type]
