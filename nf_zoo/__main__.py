"""`python -m nf_zoo` is the command `nf-zoo`."""

import sys

from .cli.main import main

sys.exit(main())
