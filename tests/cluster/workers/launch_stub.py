"""`mindbooth launch` with a stub in the trainer's place: `launch_stub.py BEHAVIOUR [options]`."""

import sys
from pathlib import Path

from mindbooth.launch.commands import launch

STUB = Path(__file__).with_name("stub.py")

if __name__ == "__main__":
    sys.exit(launch(sys.argv[2:], program=(str(STUB), sys.argv[1])))
