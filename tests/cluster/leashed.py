"""What a remote launcher is to the one that started it: `leashed.py BEHAVIOUR [STATUS]`.

heeds     ends with STATUS when it is asked to stop     stays  until its leash is let go of
chatters  does so too, after 1 MB of output             ends   at once with STATUS
                                                        dies   by SIGKILL
"""

import os
import select
import signal
import socket
import sys
import time

from mindbooth.launch.leash import Leash


def main(behaviour: str, status: str = "75") -> int:
    host, leash = socket.gethostname(), Leash(sys.stdin.fileno(), time.monotonic())
    print(f"mindbooth: a launcher on {host}\n[{host}] a worker's line", flush=True)
    print(f"mindbooth: {host} says how it ended\nlast line of {host}", file=sys.stderr, flush=True)
    if behaviour == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "chatters":
        print(("x" * 1023 + "\n") * 1024, flush=True)
    while behaviour != "ends" and leash.held:
        select.select([leash], [], [], 1)
        for number in leash.requests(time.monotonic()):
            print(f"[{host}] was asked by {number.name}", flush=True)
            if behaviour in ("heeds", "chatters"):
                return int(status)
    return int(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
