"""`python -m orchard_jit`, the same as `orchard-jit`."""

import sys

from orchard_jit.cli import main

sys.exit(main())
