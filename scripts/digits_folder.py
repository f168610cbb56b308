"""Write scikit-learn's handwritten digits as a folder of PNG files, a sub-folder for each class.

``python scripts/digits_folder.py FOLDER``: real images without a network, for trying the commands and for the gate.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits

from flowmatch.data.images import write_images


def main(folder: str) -> None:
    """Write 1797 grey images of 8 x 8, whose 17 levels become multiples of 15."""
    digits = load_digits()
    levels = torch.from_numpy(digits.images * 15).to(torch.uint8)[:, None]
    write_images(levels, Path(folder), torch.from_numpy(digits.target), [str(name) for name in digits.target_names])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {Path(sys.argv[0]).name} FOLDER")
    main(sys.argv[1])
