"""``python -m benchmarks.correctness [--write FILE]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.correctness import main

parser = argparse.ArgumentParser(description="Twelve oracle tests on flowmatch and its peers.")
parser.add_argument("--write", type=Path, metavar="FILE", help="write the page of the documentation")
sys.exit(main(parser.parse_args().write))
