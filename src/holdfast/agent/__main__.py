"""`python -m holdfast.agent ARENA_DIRECTORY`: run the agent of that arena until it is done."""

import sys
from pathlib import Path

from holdfast.agent.main import run

if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
