"""For tests of the trainer in pytest's own process."""

from no_torch import import_transformers

import_transformers()  # before test modules do it
