"""`python -m hybrid`: the command `hybrid`, where its script is not on the path."""

import sys

from hybrid.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
