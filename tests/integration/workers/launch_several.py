"""`mindbooth launch` of several trainings in one group: `launch_several.py RUNS.json [options]`."""

import sys
from pathlib import Path

from mindbooth.launch.commands import launch

SEVERAL = Path(__file__).with_name("several.py")

if __name__ == "__main__":
    sys.exit(launch(sys.argv[2:], program=(str(SEVERAL), sys.argv[1])))
