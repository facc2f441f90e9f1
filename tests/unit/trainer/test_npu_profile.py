"""MindSpore's profiler: where there is one, which updates it records, and its failure."""

import logging
from pathlib import Path

import pytest

from mindbooth.trainer import npu_profile
from mindbooth.trainer.npu_profile import device_profile


def test_a_cpu_has_no_profiler_of_its_own(tmp_path: Path) -> None:
    with device_profile("CPU", tmp_path / "ascend") as profile:
        for _ in range(9):
            profile.step()
    assert list(tmp_path.iterdir()) == []


def test_mindspores_profiler_records_three_updates_after_two() -> None:
    actions = [npu_profile.schedule()(update).name for update in range(9)]
    assert actions == ["NONE", "WARM_UP", "RECORD", "RECORD", "RECORD_AND_SAVE"] + ["NONE"] * 4


def test_a_profiler_that_fails_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ascend").write_text("a file")
    with device_profile("Ascend", tmp_path / "ascend") as profile:
        for _ in range(9):
            profile.step()
    # MindSpore has warnings of its own, where there is no CANN.
    (record,) = (record for record in caplog.records if record.name == npu_profile.__name__)
    assert record.levelno == logging.WARNING
    assert str(tmp_path / "ascend") in record.getMessage()
