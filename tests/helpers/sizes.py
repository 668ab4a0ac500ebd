"""Parameters and multiply-accumulates of every name, which tests/models/test_golden.py measures."""

import json

from nf_zoo.analysis.catalogue import SIZES_FILE

SIZES: dict[str, dict[str, int]] = json.loads(SIZES_FILE.read_text())
