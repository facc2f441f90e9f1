"""The UNet's weights are held once, in the dtype that they compute in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NUMBERS = 83_294_244


@pytest.mark.parametrize(
    ("files", "dtype", "name", "size"),
    [("float16", "fp16", "fp16", 2), ("float32", "no", "fp32", 4)],
    ids=["fp16", "fp32"],
)
def test_a_loaded_unet_takes_the_memory_of_its_weights_and_no_second_copy(
    files: str, dtype: str, name: str, size: int, tmp_path: Path
) -> None:
    run = subprocess.run(
        [sys.executable, HERE / "workers" / "weights.py", tmp_path / "model", files, dtype],
        env={**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{HERE.parent}"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["weights"] == {name: NUMBERS * size}
    assert NUMBERS * size * 0.9 < told["grown"] < NUMBERS * size * 1.3
