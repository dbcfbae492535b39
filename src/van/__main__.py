"""``python -m van``: the command line, for ``torchrun -m van`` and for machines without scripts on the path."""

import sys

from van.cli.main import main

sys.exit(main())
