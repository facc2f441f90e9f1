"""One worker's life. The only folder that imports MindSpore."""

import time

STARTED = time.time()  # no other file of ours that runs here was read before
