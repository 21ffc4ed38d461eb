"""What a store can do while the driver that is asked for does not work: all that needs no mount of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import hosttree
from tests.support.commandline import IMAGE
from tests.support.users import Login, login

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("nsenter", "setpriv", "unshare"))),
        reason="needs nsenter, setpriv and unshare",
    ),
]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Login]:
    """A user who may not open /dev/fuse, with a container that was made with another driver."""
    tree = hosttree.build(tmp_path_factory.mktemp("tree") / "root")
    with login(61236, Path(f"/tmp/layerfs-unusable-{os.getpid()}"), device=0) as made:
        made.import_tree(tree, "--driver", "vfs", "import", IMAGE)
        yield made


def test_containers_of_other_drivers_need_it_not(user: Login) -> None:
    user.layerfs("create", "--name", "box", IMAGE)
    user.run("touch", user.home / "new")
    user.run("mkdir", user.home / "place")
    user.layerfs("cp", user.home / "new", "box:/new")

    def layerfs(*words: object) -> str:
        return user.layerfs("--driver", "fuse", *words).stdout

    assert "box" in layerfs("ps", "-a")
    assert layerfs("diff", "box") == "A /new\n"
    assert IMAGE.partition(":")[0] in layerfs("images")
    layerfs("export", "-o", user.home / "box.tar", "box")
    layerfs("cp", "box:/new", user.home / "copy")
    assert "vfs" in layerfs("inspect", "box")
    for words in (("create", IMAGE), ("mount", IMAGE, user.home / "place"), ("run", "--rm", IMAGE, "true")):
        done = user.layerfs("--driver", "fuse", *words, check=False)
        assert done.returncode in (1, 125)
        assert "/dev/fuse" in done.stderr
    # Nobody has taken its directory for one of layers that once worked.
    assert not (user.home / "store/drivers/fuse").exists()
    layerfs("rm", "box")
    assert "box" not in layerfs("ps", "-a")


def test_an_empty_store_asks_for_one_that_works(user: Login) -> None:
    done = user.run(
        *user.layerfs_words("--root", user.home / "empty", "--driver", "fuse", "images"), check=False
    )
    assert done.returncode == 1
    assert "/dev/fuse" in done.stderr
