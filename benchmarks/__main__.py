"""Run benchmarks by name: ``python -m benchmarks train_step likelihood density import_time``.

Timings are medians of several runs in one process; on a shared machine quote the ratios, not the times.
"""

from __future__ import annotations

import importlib
import sys

NAMES = {
    "train_step": "one training step against a hand-written PyTorch loop",
    "likelihood": "exact and estimated log-likelihood against flow_matching, torchdiffeq and a lean loop",
    "density": "negative log-likelihood minus entropy on toy sets of known density",
    "coupling": "exact and entropic couplings against TorchCFM, POT and SciPy at equal cost",
    "solvers": "error at few calls and calls at one error, against torchdiffeq, flow_matching and diffusers",
    "transport": "optimal-transport flow matching in two dimensions against TorchCFM",
    "correctness": "twelve oracle tests on this library and its peers",
    "import_time": "what `import flowmatch` adds to `import torch`",
}


def main(names: list[str]) -> int:
    """Run the named benchmarks in turn; returns the exit code."""
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        if unknown:
            print(f"no benchmark {', '.join(unknown)}", file=sys.stderr)
        print("usage: python -m benchmarks NAME [NAME ...]\n")
        for name, what in NAMES.items():
            print(f"  {name:12s} {what}")
        return 2 if unknown else 0
    for name in names:
        print(f"\n== {name}: {NAMES[name]}", flush=True)
        importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
