"""Class images and no training: `prior.py [training flags]`.

Several workers share them out in `prior.py launch [launcher options] -- [training flags]`.
"""

import os
import sys
from pathlib import Path

from mindbooth.launch.commands import launch
from mindbooth.ranktable.placement import Placement
from mindbooth.trainer import __main__ as trainer


def fill(argv: list[str]) -> None:
    trainer.keep_torch_out()
    from mindbooth.trainer import device, place, prior, report, sdxl
    from mindbooth.trainer.parse import parse

    report.start()
    config, _ = parse(argv)
    comm = device.start(Placement.from_environ(os.environ), target="CPU")
    meeting = place.meet(config, comm, os.environ).meeting
    with place.failures_told(meeting):
        model = sdxl.locate(config.model)
        meeting.at("looked")
        prior.fill(config, model, comm, meeting, sdxl.DTYPES[config.optim.mixed_precision])


if __name__ == "__main__":
    if sys.argv[1] == "launch":
        sys.exit(launch(sys.argv[2:], program=(str(Path(__file__)),)))
    fill(sys.argv[1:])
