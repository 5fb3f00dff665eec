"""`python -m flashref`: the command line."""

import sys

from flashref.cli import main

if __name__ == "__main__":
    sys.exit(main())
