"""`python -m sdpo_bench`, which is also the command sdpo-bench."""

import sys

from sdpo_bench.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
