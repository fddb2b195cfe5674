"""Who runs a chapter by its path, python beyond/train.py, imports this in place of the package, and is told so."""

import os
import sys

sys.exit(f"error: run it from the folder above: python -m beyond.{os.path.basename(sys.argv[0])[:-3]}")
