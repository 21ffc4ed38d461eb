"""Made-up names for containers that were given none: two words that are easy to say and to tell apart."""

from __future__ import annotations

import os
from typing import Final

_HOW: Final = (
    "amber brisk calm clever cosy crisp curious dapper deft dusty eager early fond frosty gentle glad "
    "golden happy hardy hazy honest humble jolly keen kind lively lucky mellow merry mighty misty neat "
    "nimble noble patient plain plucky polite proud quick quiet rapid ready rosy rustic shiny silent "
    "sleepy smart snug sober solid steady sunny sweet swift tidy tiny tranquil vivid warm wise witty "
    "zesty"
)
_WHAT: Final = (
    "acorn alder anchor aspen badger barley beacon beech birch bison breeze brook canyon cedar clover "
    "comet coral cricket daisy delta dune ember falcon fern finch fjord forest garnet ginger glacier "
    "harbor hazel heron ibex island ivy juniper kestrel lagoon lantern larch lemur linden lotus lynx "
    "maple marten meadow nettle oak onyx orchid osprey otter pebble pine plover poplar prairie quartz "
    "quill raven reef river robin rowan saffron sequoia sparrow spruce starling summit thistle thyme "
    "tulip valley walnut willow wren yarrow"
)


def make_up() -> str:
    """Make up a name such as ``brisk_otter``; not every one is free."""
    how, what = _HOW.split(), _WHAT.split()
    number = int.from_bytes(os.urandom(4), "little")
    return f"{how[number % len(how)]}_{what[number // len(how) % len(what)]}"
