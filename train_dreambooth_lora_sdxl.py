#!/usr/bin/env python
"""The well-known script's name for `mindbooth train`, with its flags.

python train_dreambooth_lora_sdxl.py --pretrained_model_name_or_path=... ...
msrun --worker_num=8 --local_worker_num=8 train_dreambooth_lora_sdxl.py --distributed ...
"""

import sys

from mindbooth.trainer.__main__ import main

if __name__ == "__main__":
    sys.exit(main(prog="train_dreambooth_lora_sdxl.py"))
