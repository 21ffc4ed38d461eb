"""Makes what the Dockerfile next to it builds from: the base image's tree, and the build context.

``python -m tests.interop.image.context DIR`` makes both below DIR, for a look or a build by hand.
"""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
from pathlib import Path

from tests.support import hosttree

BASE_NAME = "layerfs-interop/base:1"
IMAGE_NAME = "layerfs-interop/image:1"
DOCKERFILE = Path(__file__).with_name("Dockerfile")
PROGRAMS = (*hosttree.PROGRAMS, "setcap", "getcap", "setfattr", "setfacl")
# A Sunday in 2017, with a fraction of a second that docker drops.
_TIME = 1_500_000_000


def make_base(root: Path) -> Path:
    """Make the root file system that the image starts from."""
    return hosttree.build(root, PROGRAMS)


def make_context(directory: Path) -> Path:
    """Make the directory that `docker build` is given: the Dockerfile, a folder and an archive."""
    directory.mkdir(exist_ok=True)
    shutil.copyfile(DOCKERFILE, directory / "Dockerfile")
    files = directory / "files"
    (files / "sub").mkdir(parents=True)
    (files / "one").write_text("one\n")
    (files / "sub/two").write_text("two\n")
    (files / "sub/two").chmod(0o600)
    (files / "link").symlink_to("sub/two")
    (directory / "files.tar").write_bytes(_archive())
    return directory


def _archive() -> bytes:
    """Give a tar with entries in an unusual order: children before parents, and some parents missing."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        _add(archive, "unpacked/two", b"two\n", uid=12, gid=34)
        _add(archive, "unpacked/three/deep", b"deep\n", mode=0o4711)
        folder = tarfile.TarInfo("unpacked")
        folder.type, folder.mode, folder.mtime = tarfile.DIRTYPE, 0o2750, _TIME
        archive.addfile(folder)
        again = tarfile.TarInfo("unpacked/again")
        again.type, again.linkname = tarfile.LNKTYPE, "unpacked/three/deep"
        archive.addfile(again)
        pipe = tarfile.TarInfo("unpacked/pipe")
        pipe.type, pipe.mode, pipe.mtime = tarfile.FIFOTYPE, 0o640, _TIME
        archive.addfile(pipe)
    return buffer.getvalue()


def _add(
    archive: tarfile.TarFile, name: str, data: bytes, *, mode: int = 0o644, uid: int = 0, gid: int = 0
) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.uid, member.gid, member.mtime = len(data), mode, uid, gid, _TIME + 0.25
    archive.addfile(member, io.BytesIO(data))


def main(arguments: list[str]) -> None:
    """Make both below the directory given."""
    target = Path(arguments[0])
    target.mkdir(parents=True, exist_ok=True)
    make_base(target / "base")
    make_context(target / "context")


if __name__ == "__main__":
    main(sys.argv[1:])
