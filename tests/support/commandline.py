"""Runs the command line in this process, on a store with a small image of this machine's own programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from layerfs import Store
from tests.support import hosttree

IMAGE = "small:1"


class Done(NamedTuple):
    """How a command line ended."""

    status: int
    out: str
    err: str


class CommandLine:
    """``layerfs --root ROOT`` as a process of its own, since signals and streams are part of it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def words(self, *words: object) -> list[str]:
        return [sys.executable, "-m", "layerfs", "--root", str(self.root), *map(str, words)]

    def run(self, *words: object, stdin: bytes = b"", cwd: Path | None = None) -> Done:
        done = subprocess.run(self.words(*words), input=stdin, capture_output=True, cwd=cwd)
        return Done(done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode())

    def good(self, *words: object, stdin: bytes = b"", cwd: Path | None = None) -> str:
        done = self.run(*words, stdin=stdin, cwd=cwd)
        assert done.status == 0, done.err
        return done.out

    def json(self, *words: object) -> Any:
        return json.loads(self.good("--json", *words))


def make_store(directory: Path) -> CommandLine:
    """Make a store with one image, ``small:1``, that has a shell, variables and a command."""
    hosttree.build(directory / "root")
    with Store.open(directory / "store") as store:
        changes = ['CMD ["/bin/sh", "-c", "echo $GREETING"]', "ENV GREETING=hello"]
        store.import_tree(directory / "root", IMAGE, changes=changes, message="by hand")
    return CommandLine(directory / "store")
