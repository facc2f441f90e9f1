"""A fan-out of given commands: `fan.py GRACE_SECONDS HOST COMMAND [HOST COMMAND ...]`."""

import sys

from mindbooth.launch.follow import Terminal
from mindbooth.launch.ssh import fan_out

if __name__ == "__main__":
    sys.exit(
        fan_out(
            hosts=sys.argv[2::2],
            commands=sys.argv[3::2],
            terminal=Terminal(out=sys.stdout, err=sys.stderr),
            grace_seconds=float(sys.argv[1]),
        )
    )
