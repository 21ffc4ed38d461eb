"""Writes the reference of the command line, docs/layerfs.1.md, from the parsers themselves."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from layerfs.cli import commands
from layerfs.cli.parser import GLOBAL_OPTIONS, CommandParser, build

OPENING = """\
<!-- Written by `make docs` from the parsers in layerfs/cli; change those. -->
# layerfs(1)

## NAME

layerfs - container file systems: content-addressed layers, copy-on-write mounts, exact diffs

## SYNOPSIS

**layerfs** [**--root** *DIR*] [**--driver** *DRIVER*] [**--json**] *COMMAND* [*ARGUMENTS*]

## DESCRIPTION

**layerfs** keeps images made of content-addressed tar layers, shows a stack of layers as a file tree, and
gives every run a writable layer of its own. There is no daemon and nothing to configure.

Data goes to standard output, words to standard error, and where something can be done about a failure the
last line begins with `hint:`. Wherever a command prints a table, **--json** prints the same as JSON.

Long work is shown on standard error: on a terminal a line for each layer and one for the whole, with rate and
time left; elsewhere one line for each layer that is done, and one now and then for what takes long. With
**--quiet** nothing is shown but the result.
"""

CLOSING = """\
## JSON

With **--json** each of these prints one value; sizes are in bytes, digests and ids written `sha256:...`.

**pull**
:   an object with `id` (of the config), `names` and `digest` (of the manifest); with **--all-tags** a list

**push**, **copy**, **attach**
:   an object with `digest`, `media_type` and `size`, the descriptor of what was put; of
    **push --all-tags** a list

**inspect**
:   JSON in any case: a list of objects with all that is known; of a place with the `platforms` of an
    index, and of a registry with its `tags`

**tags**
:   an object with `repository` and `tags`

**delete**
:   an object with `repository` and `digest`

**referrers**
:   an object with `subject`, a digest, and `referrers`, a list of descriptors as the distribution
    specification has them

**load**, **commit**, **import**
:   an object with `id` and `names`; of **load** a list of them

**images**, **ps**, **history**, **diff**, **drivers**
:   a list with an object for each line of the table

**gc**, **check**, **du**, **info**
:   an object with all that the text tells

## ENVIRONMENT

**LAYERFS_ROOT**
:   the store's directory when **--root** is not given; else `/var/lib/layerfs` for root, and
    `$XDG_DATA_HOME/layerfs` (`~/.local/share/layerfs`) for everyone else

**LAYERFS_DRIVER**
:   the storage driver when **--driver** is not given; else the one the store was made with, or the best that
    works here

**LAYERFS_BUDGET**
:   what a layer may ask for when **--budget** is not given: NAME=NUMBER with commas between, and k, M, G or T
    behind a number for powers of 1024. The names are `bytes` (of data written), `entries`, `depth` (parts of
    a path), `links` (hard links that wait for their file), `pax_bytes` and `name_bytes` (of one extended
    header), `segments` (of a sparse file), `ratio` (of compression) and `ratio_floor` (unpacked bytes from
    which on it counts), `members` (of a gzip or zstd stream), `window` (of a zstd frame) and `toc_bytes`

**LAYERFS_FUSE_FRONT**
:   what serves the trees of fuse, and of aufs where the kernel has none: `kernel`, the protocol of
    /dev/fuse spoken directly, as is usual on Linux; or `fusepy`, libfuse 2, as is usual elsewhere

## EXIT STATUS

| status | meaning |
|---|---|
| 0 | done |
| 1 | failed; standard error says why |
| 2 | the command line is wrong |
| 130 | interrupted from the keyboard |
| 141 | the reader of standard output went away |

**layerfs run** and **layerfs start --attach** give the exit status of the container's process (128 and the
number of the signal when one ended it), or as docker does:

| status | meaning |
|---|---|
| 125 | layerfs failed, or the command line is wrong |
| 126 | the program cannot be executed |
| 127 | the program was not found |

## SEE ALSO

ARCHITECTURE.md for how it works inside; the OCI image specification for images and layers;
`layerfs COMMAND --help` for a command at hand.
"""


def reference() -> str:
    """Write the whole page as Markdown."""
    parts = [OPENING, "## GLOBAL OPTIONS\n\nBefore the command, or among its own options.\n"]
    for option, metavar, text in GLOBAL_OPTIONS:
        parts.append(f"{_option([option], metavar)}\n:   {text}\n")
    for title, group in commands.GROUPS.items():
        parts.append(f"## {title.upper()}\n")
        parts += [_command(name, summary) for name, (_, summary) in group.items()]
    parts.append(CLOSING)
    return "\n".join(parts)


def _command(name: str, summary: str) -> str:
    parser = build(name)
    needed = [_option(each.split()[:1], each.split()[1]) for each in parser.needed()]
    synopsis = " ".join([*needed, *(_emphasised(word) for word in parser.positionals())])
    lines = [f"### layerfs {name}", "", f"**layerfs {name}** [*OPTIONS*] {synopsis}".rstrip(), ""]
    lines += [f"{summary}. {parser.command.description}", ""]
    for words, text in _actions(parser):
        lines += [words, f":   {text}", ""]
    lines += ["```", *(f"$ {example}" for example in parser.command.examples), "```", ""]
    return "\n".join(lines)


def _actions(parser: CommandParser) -> Iterator[tuple[str, str]]:
    shared = {option for option, _, _ in GLOBAL_OPTIONS}
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or shared.intersection(action.option_strings):
            continue
        metavar = None if action.nargs == 0 else str(action.metavar)
        words = _option(action.option_strings, metavar) if action.option_strings else f"*{metavar}*"
        yield words, str(action.help)


def _option(names: Sequence[str], metavar: str | None) -> str:
    written = ", ".join(f"**{name}**" for name in names)
    if metavar is not None and metavar.startswith("[="):
        return f"{written}[=*{metavar[2:-1]}*]"
    return written if metavar is None else f"{written} *{metavar}*"


def _emphasised(word: str) -> str:
    bare = word.strip("[].")
    return word.replace(bare, f"*{bare}*")


if __name__ == "__main__":
    sys.stdout.write(reference())
