"""Properties of what is read out of headers: nothing that a server writes breaks it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from layerfs.errors import UntrustedError
from layerfs.registry.challenge import parse
from layerfs.registry.origin import Origin, shown
from layerfs.registry.problems import Asked, from_answer, retry_after

TOKEN = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,10}", fullmatch=True)
TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40)


class TestAChallengeIsReadAsRfc9110WritesIt:
    """challenge = auth-scheme [ 1*SP ( token68 / #auth-param ) ]"""

    @given(TOKEN, st.dictionaries(TOKEN.map(str.lower), TEXT, min_size=1, max_size=5))
    def test_what_is_written_is_read(self, scheme: str, parameters: dict[str, str]) -> None:
        quoted = {k: v.replace("\\", "\\\\").replace('"', '\\"') for k, v in parameters.items()}
        value = f"{scheme} " + ", ".join(f'{k}="{v}"' for k, v in quoted.items())
        assert parse([value]) == [(scheme.lower(), parameters)]

    @given(st.lists(st.text(), max_size=3))
    def test_anything_is_read_without_an_error(self, values: list[str]) -> None:
        for challenge in parse(values):
            assert challenge.scheme == challenge.scheme.lower()


class TestAnythingMayStandInAnAnswer:
    @given(st.integers(100, 999), st.binary(max_size=300), st.text(max_size=20))
    def test_an_error_is_one_printable_line(self, status: int, body: bytes, wait: str) -> None:
        asked = Asked("host", "name", "manifests/1")
        error = from_answer(status, {"Retry-After": wait}, body, asked)
        assert str(error).isprintable()

    @given(st.text())
    def test_a_pause_is_no_less_than_none(self, text: str) -> None:
        found = retry_after({"Retry-After": text})
        assert found is None or found >= 0

    @given(st.text())
    def test_a_url_is_of_http_or_refused(self, text: str) -> None:
        assert shown(text).isprintable()
        try:
            origin = Origin.of(text)
        except UntrustedError:
            return
        assert origin.scheme in ("http", "https")
        assert origin.host
