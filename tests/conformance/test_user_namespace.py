"""The overlay2 driver in a user namespace, where trusted xattrs cannot be set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, shutil, sys
from pathlib import Path
from layerfs_overlay2 import Overlay2Driver
from layerfs.mount import Overlay
from layerfs.testing.items import directory, file, hard_link, node, opaque, whiteout
from layerfs.testing.snapshot import differences
from layerfs.testing.stack import Stack

root = Path(sys.argv[1])
for name in ("driver", "mounts"):
    (root / name).mkdir()
Overlay2Driver.check(root / "driver")
stack = Stack(Overlay2Driver(root / "driver"), root / "mounts")
stack.apply([directory(b"d"), file(b"d/f", b"x"), file(b"g", b"y"), directory(b"o"), file(b"o/old")])
stack.apply([whiteout(b"g"), opaque(b"o"), hard_link(b"link", b"d/f")])
mount = stack.driver.mount(stack.layers[-1], stack.layers[:-1], read_only=True)
assert isinstance(mount, Overlay) and "userxattr" in mount.options
assert sorted(stack.tree()) == [b"", b"d", b"d/f", b"link", b"o"]
with stack.edited() as place:
    (place / "d" / "f").unlink()
    shutil.rmtree(place / "o")
    (place / "o").mkdir()
    (place / "new").touch()
assert stack.listed() == ["C /d", "D /d/f", "A /new"], stack.listed()
assert sorted(stack.tree()) == [b"", b"d", b"link", b"new", b"o"]
again = stack.fork(2)
again.apply(stack.archive())
assert differences(again.tree(), stack.tree()) == []
stack.apply([node(b"null", "character", (1, 3)), file(b"last")])
assert sorted(stack.tree()) == [b"", b"d", b"last", b"link", b"new", b"o"]
assert any("'null'" in warning for warning in stack.warnings), stack.warnings
for layer in stack.driver.layers():
    stack.driver.remove(layer)
"""


def test_layers_are_applied_edited_and_compared_with_user_xattrs(tmp_path: Path) -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")
    result = subprocess.run(
        [*unshare, sys.executable, "-c", SCRIPT, tmp_path], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
