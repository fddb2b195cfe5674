"""python beyond/train.py imports this file instead of the package, and stops with the command to run instead."""

import os
import sys

sys.exit(f"error: run it from the folder above: python -m beyond.{os.path.basename(sys.argv[0])[:-3]}")
