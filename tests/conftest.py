"""Puts tests/ on the import path, so that tests of every room can say `from support.tiny_models import ...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
