"""What is kept of damaged files."""

from __future__ import annotations

import os
from pathlib import Path

from layerfs.quarantine import Quarantine


def test_a_file_is_copied_once_however_often_its_repair_fails(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    (tmp_path / "file").write_bytes(b"one")
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert quarantine.copy("a/b", directory, b"file") == tmp_path / "quarantine/a-b"
        assert quarantine.copy("a/b", directory, b"file") is None
        (tmp_path / "file").write_bytes(b"two")
        assert quarantine.copy("a/b", directory, b"file") == tmp_path / "quarantine/a-b.2"
        assert quarantine.copy("a/b", directory, b"file") is None
    finally:
        os.close(directory)
    assert sorted(path.read_bytes() for path in quarantine.directory.iterdir()) == [b"one", b"two"]
