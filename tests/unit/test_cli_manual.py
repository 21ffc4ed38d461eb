"""Tests of the generated reference."""

from __future__ import annotations

from pathlib import Path

from layerfs.cli import commands, manual

PAGE = Path(__file__).parents[2] / "docs/layerfs.1.md"


def test_the_reference_is_up_to_date() -> None:
    assert PAGE.read_text() == manual.reference(), "run `make docs`"


def test_the_reference_has_every_command_with_its_example() -> None:
    page = manual.reference()
    for name in commands.COMMANDS:
        assert f"### layerfs {name}\n" in page
        for example in commands.load(name).examples:
            assert f"$ {example}\n" in page
