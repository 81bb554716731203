"""`python -m sdpo_bench`, the same as the command sdpo-bench."""

import sys

from sdpo_bench.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
