"""``python -m genimg_fast``: the command line."""

import sys

from genimg_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
