"""`python3 -m gwmodule`: the same as the command `gwmodule`."""

import sys

from gwmodule.cli import main

sys.exit(main())
