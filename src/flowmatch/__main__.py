"""``python -m flowmatch``, for ``torchrun --nproc-per-node 2 -m flowmatch train ...``."""

import sys

from flowmatch.cli import main

if __name__ == "__main__":
    sys.exit(main())
