"""The inside of the job: everything between the scripts that a user runs and the tasks.

Each module says in its head what it is for. train.py reads as their table of contents.
"""

import importlib.util
import os
import sys

# All scripts import this first. A Python without the requirements is told here, in one line.
for _package in ("omegaconf", "torch", "transformers"):
    if importlib.util.find_spec(_package) is None:
        _script = os.path.basename(sys.argv[0]) or "SCRIPT"
        print(
            f"error: {_package} is missing here: run it as bash train.sh --local {_script} ...",
            file=sys.stderr,
        )
        sys.exit(2)
