"""Progress that nobody sees."""

from __future__ import annotations

from layerfs.progress import Progress, Silent


def test_silent_progress_takes_any_advance() -> None:
    progress: Progress = Silent()
    with progress.task("one", 10) as outer, progress.task("two", None) as inner:
        assert outer(3) is None
        assert inner(1 << 40) is None
