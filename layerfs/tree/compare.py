"""Say whether two files are the same: attributes first, then content."""

from __future__ import annotations

import os
from typing import Final

from layerfs.files import open_regular
from layerfs.tree.entry import Entry

_CHUNK: Final = 1 << 20


def same_attributes(one: Entry, other: Entry) -> bool:
    """Compare all that an entry holds but its path, and the segments of sparse files."""
    return one[1:10] == other[1:10]


def same_but_for_time(one: Entry, other: Entry) -> bool:
    """Compare as `same_attributes` does, modification times left out."""
    return one[1:5] == other[1:5] and one[6:10] == other[6:10]


def same_content(directory: int, name: bytes, other_directory: int, other_name: bytes) -> bool:
    """Compare two regular files byte by byte."""
    one = open_regular(directory, name)
    try:
        other = open_regular(other_directory, other_name)
        try:
            return _same_bytes(one, other)
        finally:
            os.close(other)
    finally:
        os.close(one)


def _same_bytes(one: int, other: int) -> bool:
    while True:
        data = os.read(one, _CHUNK)
        rest = os.read(other, len(data) or 1)
        if not data:
            return not rest
        while len(rest) < len(data):
            more = os.read(other, len(data) - len(rest))
            if not more:
                return False
            rest += more
        if data != rest:
            return False


def is_same_file(one: os.stat_result, other: os.stat_result) -> bool:
    """Say whether two lstat(2) results are of one inode that was not written between them."""
    return one.st_ino == other.st_ino and one.st_dev == other.st_dev and one.st_ctime_ns == other.st_ctime_ns
