"""One worker's life. The only folder that imports MindSpore."""

import time

STARTED = time.time()  # no file that a graph depends on was read before
