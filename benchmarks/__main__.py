"""Runs the harness as a program."""

from __future__ import annotations

import sys

from benchmarks.commandline import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
