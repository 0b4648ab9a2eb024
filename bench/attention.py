"""Forward and backward against PyTorch's own attention, over a grid of shapes: `orchard-jit bench`.

python bench/attention.py                      # a grid of a few minutes
python bench/attention.py --head-dim 64 --length 512,2048 --dtype float32 --threads 1,2 --json out.json
"""

from __future__ import annotations

import sys

from orchard_jit.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
