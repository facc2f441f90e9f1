"""`mindbooth launch` of faulty trainings in one group: `launch_faulty.py RUNS.json [options]`."""

import sys
from pathlib import Path

from mindbooth.launch.commands import launch

FAULTY = Path(__file__).with_name("faulty.py")

if __name__ == "__main__":
    sys.exit(launch(sys.argv[2:], program=(str(FAULTY), sys.argv[1])))
