"""Tests of how results are written."""

from __future__ import annotations

import json

import pytest

from layerfs.cli import output


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1kB"),
        (1024, "1.02kB"),
        (12_345_678, "12.3MB"),
        (999_950, "1MB"),
        (123_456_789, "123MB"),
        (5 * 10**9, "5GB"),
        (3 * 10**15, "3PB"),
        (5 * 10**18, "5EB"),
    ],
)
def test_sizes_have_three_figures_as_dockers(count: int, text: str) -> None:
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Less than a second"),
        (1, "1 second"),
        (59.9, "59 seconds"),
        (60, "About a minute"),
        (120, "2 minutes"),
        (3600, "About an hour"),
        (7200, "2 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (14 * 86400, "2 weeks"),
        (60 * 86400, "2 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_ages_are_dockers_words(seconds: float, text: str) -> None:
    assert output.age(seconds) == text


def test_a_table_aligns_its_columns_and_ends_no_line_in_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["NAME", "SIZE"], [["long-name", "1B"], ["x", ""]])
    assert capsys.readouterr().out == "NAME        SIZE\nlong-name   1B\nx\n"


def test_a_name_that_is_not_utf8_survives_json(capsys: pytest.CaptureFixture[str]) -> None:
    output.document({"path": b"caf\xe9".decode(errors="surrogateescape")})
    path = json.loads(capsys.readouterr().out)["path"]
    assert path.encode(errors="surrogateescape") == b"caf\xe9"


def test_ids_are_cut_to_twelve_digits() -> None:
    identity = "sha256:" + "0123456789abcdef" * 4
    assert output.short(identity) == "0123456789ab"
    assert output.short(identity, whole=True) == identity


def test_a_moment_is_written_in_utc() -> None:
    assert output.moment(0) == "1970-01-01T00:00:00Z"
    assert output.moment(None) is None
