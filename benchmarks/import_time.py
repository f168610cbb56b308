"""What ``import flowmatch`` adds to ``import torch``, each in a process of its own."""

from __future__ import annotations

import statistics
import subprocess
import sys

CODE = "import time, torch, numpy; s = time.perf_counter(); import flowmatch; print(time.perf_counter() - s)"


def main() -> None:
    """Print the median of nine runs."""
    runs = [
        float(subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True).stdout) for _ in range(9)
    ]
    print(
        f"import flowmatch after torch: median {statistics.median(runs):.3f} s, max {max(runs):.3f} s, {len(runs)} runs"
    )


if __name__ == "__main__":
    main()
