"""``python -m genimg_fast``: the command line."""

import sys

from genimg_fast.cli import main

sys.exit(main())
