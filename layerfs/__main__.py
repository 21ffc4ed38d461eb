"""Runs the command line as ``python -m layerfs``."""

import sys

from layerfs.cli import main

if __name__ == "__main__":
    sys.exit(main())
