"""Containers in the background: a process of ours stays with each, waits for it, and keeps what it writes."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from layerfs.cli.context import Context
from layerfs.errors import LayerfsError, NotFoundError, ProcessError

# What a pipe takes whole (POSIX: PIPE_BUF).
_REPORT_MAXIMUM = 4096
_FAILED = 125


def start(context: Context, name: str, *, remove: bool = False) -> None:
    """Start a container's process in the background, and return once it runs.

    The store is opened after the fork: a database connection must not cross one.

    Args:
        remove: the container, when its process has ended.

    Raises:
        ProcessError: it could not be started.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            os.setsid()
            _silence(0, 1, 2)
            _wait_for(context, name, writing, remove=remove)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    # One read, not one to the end: processes of the container may hold the other end as long as they live.
    told = os.read(reading, _REPORT_MAXIMUM).decode(errors="replace")
    os.close(reading)
    word, *rest = told.split("\n", 3)
    if word != "started":
        number, hint, message = rest if len(rest) == 3 else (str(_FAILED), "", "")
        raise ProcessError(
            message or f"container {name} did not start", status=int(number), hint=hint or None
        )


def _silence(*streams: int) -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for stream in streams:
        os.dup2(null, stream)
    os.close(null)


def _wait_for(context: Context, name: str, report: int, *, remove: bool) -> None:
    """Run a container to its end, in the background; tell through `report` how its start went."""
    told = False

    def tell(text: str) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(report, text.encode(errors="replace")[:_REPORT_MAXIMUM])
            os.close(report)

    try:
        with context.open_store() as store:
            container = store.containers.get(name)
            writer = _keep_output(container.log)
            try:
                container.start(interactive=False, on_start=lambda _: tell("started"))
            finally:
                _silence(1, 2)
                os.waitpid(writer, 0)
            if remove:
                # `rm -f` may have been first.
                with contextlib.suppress(NotFoundError):
                    store.containers.remove(container.id)
    except (LayerfsError, OSError) as error:
        status = error.status if isinstance(error, ProcessError) else _FAILED
        tell(f"failed\n{status}\n{getattr(error, 'hint', None) or ''}\n{error}")


def _keep_output(path: Path) -> int:
    from layerfs.runtime import log

    writer, output, errors = log.record(path)
    for descriptor, stream in ((output, 1), (errors, 2)):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    return writer
