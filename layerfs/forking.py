"""Forks of a process that has threads: one at a time, and no lock of another thread lives on in the child.

What a child inherits by chance does harm: the write end of a pipe whose end somebody waits for, or the open
file of a lock (flock(2)), which is held as long as any copy of that is open. So pipes for a child are made,
and their far ends closed, within `alone`, and whoever takes such a lock says so.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Final

alone = threading.RLock()
"""Held from before a child's pipes are made until the parent has closed the child's ends of them.

A child begins with one of its own, which is free; so it never leaves such a block.
"""

# Which thread holds the lock that each descriptor stands for.
_locks: Final[dict[int, int]] = {}


def hold(descriptor: int) -> None:
    """Note that the calling thread holds a lock by this descriptor, and no child of another thread may."""
    _locks[descriptor] = threading.get_ident()


def let_go(descriptor: int) -> None:
    """Note that the descriptor is about to be closed; one that holds no lock is none either way."""
    _locks.pop(descriptor, None)


def _begin_anew() -> None:
    global alone
    alone = threading.RLock()
    own = threading.get_ident()
    for descriptor in [each for each, thread in _locks.items() if thread != own]:
        del _locks[descriptor]
        with contextlib.suppress(OSError):
            os.close(descriptor)


os.register_at_fork(after_in_child=_begin_anew)
