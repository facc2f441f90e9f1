"""mindone.transformers without its model families, and with them where one is asked for."""

import subprocess
import sys

START = """
import sys
from mindbooth.ranktable.placement import Placement
from mindbooth.trainer import device
device.start(Placement.from_environ({}), target="CPU")
FAMILY = "mindone.transformers.models.bert"
"""


def run(*lines: str) -> None:
    code = "\n".join([START, *lines])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_what_sdxl_needs_imports_no_other_family() -> None:
    run(
        "from mindone.diffusers import StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline",
        "from mindone.diffusers import AutoencoderKL, UNet2DConditionModel",
        "from mindone.peft import LoraConfig",
        "from mindone.transformers import CLIPTextModel, CLIPTextModelWithProjection",
        "assert FAMILY not in sys.modules",
    )


def test_another_model_is_there_when_it_is_asked_for() -> None:
    run(
        "from mindone.diffusers import UNet2DConditionModel",
        "from mindone.transformers import CLIPTextModel as before",
        "from mindone.transformers import BertModel, CLIPTextModel, __version__",
        "import mindone.transformers.models as models",
        "assert models.bert.BertModel is BertModel",
        "assert CLIPTextModel is before",
        "assert FAMILY in sys.modules",
        "assert not hasattr(models, 'nothing')",
    )
