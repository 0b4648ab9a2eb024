"""Everything that is done to the cache, in full, with counts.

python -m tests.chaos --kills 200
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

from torch.utils import cpp_extension  # noqa: F401  (imported once, for all forks)

from tests.chaos import trials

TRIALS = {
    "kills": lambda options: trials.kills(options.kills, options.seed),
    "steps": lambda options: trials.kills_at_steps(),
    "refusals": lambda options: trials.refusals(),
    "corruptions": lambda options: trials.corruptions(positions=512),
    "crowd": lambda options: trials.crowd(processes=16, libraries=3),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=trials.__doc__)
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=f"{', '.join(TRIALS)} (default: all)")
    parser.add_argument("--kills", type=int, default=200, help="builds to kill at random moments")
    parser.add_argument("--seed", type=int, default=0, help="of those moments")
    options = parser.parse_args()
    os.environ.pop("CXX", None)
    for name in options.trials or TRIALS:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["ORCHARD_JIT_CACHE_DIR"] = f"{folder}/cache"
            began = time.monotonic()
            counts = ", ".join(f"{count} {what}" for what, count in TRIALS[name](options).items())
            print(f"{name:11}  {counts} ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
