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
    "images": "one U-Net on Fashion-MNIST in equal seconds, against TorchCFM, flow_matching and diffusers",
    "import_time": "what `import flowmatch` adds to `import torch`",
}

WITH_OPTIONS = ("images",)


def main(arguments: list[str]) -> int:
    """Run the named benchmarks in turn; returns the exit code.

    What follows the name of a single benchmark with options of its own goes to it: ``images --quick``.
    """
    first = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    names, options = arguments[:first], arguments[first:]
    if options and (len(names) != 1 or names[0] not in WITH_OPTIONS):
        print(f"options such as {options[0]} follow one of: {', '.join(WITH_OPTIONS)}", file=sys.stderr)
        return 2
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
        run = importlib.import_module(f"benchmarks.{name}").main
        run(options) if name in WITH_OPTIONS else run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
