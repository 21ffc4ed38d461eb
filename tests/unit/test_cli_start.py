"""What commands import: what they do takes less time than their imports, so nothing that they do not use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commandline import IMAGE, CommandLine, make_store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")

# Each would be the dearest module of all that a short command needs.
HEAVY = {
    "asyncio", "dataclasses", "difflib", "importlib.metadata", "inspect", "isal", "multiprocessing", "pickle",
    "random", "rich", "shutil", "socket", "subprocess", "tarfile", "tempfile", "zstandard",
}  # fmt: skip
UNUSED = {
    "images": {"ctypes", "layerfs.containers", "layerfs.driver", "layerfs.layers", "signal"},
    "run": {"layerfs.garbage", "layerfs.transports", "layerfs.tree.extract", "layerfs.unpacking"},
    "mount": {"layerfs.outside", "layerfs.runtime.launch", "layerfs.unpacking", "layerfs_fuse.libfuse"},
}

SCRIPT = """
import sys

def hear(event, arguments):
    if event == "compile" and isinstance(arguments[0], str):
        print("compiled", arguments[0], file=sys.stderr)

sys.addaudithook(hear)
from layerfs.cli import main
status = main(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def layerfs(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    return make_store(tmp_path_factory.mktemp("store"))


def imported(layerfs: CommandLine, *words: object) -> tuple[set[str], list[str]]:
    """Carry a command line out; give the modules that are there at its end, and what it compiled."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "--root", str(layerfs.root), *map(str, words)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    *compiled, modules = done.stderr.splitlines()
    return set(modules.split()), compiled


@pytest.mark.parametrize("words", [("images",), ("run", "--rm", IMAGE, "true")], ids=["images", "run"])
def test_a_command_imports_nothing_heavy_and_compiles_nothing(
    layerfs: CommandLine, words: tuple[str, ...]
) -> None:
    modules, compiled = imported(layerfs, *words)
    assert not modules & (HEAVY | UNUSED[words[0]])
    # What evaluates annotations that are text compiles them (NamedTuple, singledispatch): 1.5 ms at first.
    assert not compiled


def test_a_fuse_mount_imports_nothing_heavy(layerfs: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    # The first one unpacks the image for this driver.
    layerfs.good("--driver", "fuse", "create", IMAGE)
    modules, compiled = imported(layerfs, "--driver", "fuse", "mount", IMAGE, tmp_path / "tree")
    layerfs.good("umount", tmp_path / "tree")
    assert not modules & (HEAVY | UNUSED["mount"])
    assert not compiled
