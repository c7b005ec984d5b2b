"""`python -m polarice` is `polarice`."""

import sys

from polarice.cli import main

sys.exit(main())
