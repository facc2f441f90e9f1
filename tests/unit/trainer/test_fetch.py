"""A hub that does not give something: a mistake, or an outage that passes."""

import errno
from collections.abc import Callable
from typing import NoReturn

import pytest
import requests
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from mindbooth.trainer import fetch
from mindbooth.trainer.config import ConfigError
from mindbooth.trainer.errors import Unreachable


def answer(status: int) -> HfHubHTTPError:
    response = requests.Response()
    response.status_code = status
    return HfHubHTTPError(f"{status} says the server", response=response)


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    def fails(error: Exception) -> None:
        def download(*_: object, **__: object) -> NoReturn:
            raise error

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)

    return fails


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (answer(401), ConfigError),
        (answer(404), ConfigError),
        (ValueError("a name with blanks"), ConfigError),
        (answer(429), Unreachable),
        (answer(503), Unreachable),
        (LocalEntryNotFoundError("no connection"), Unreachable),
        (ConnectionResetError(errno.ECONNRESET, "reset"), Unreachable),
    ],
)
def test_what_may_pass_is_no_mistake(
    fails: Callable[[Exception], None], error: Exception, expected: type[Exception]
) -> None:
    fails(error)
    with pytest.raises(expected, match="--vae a/b: there is no such folder here"):
        fetch.folder("--vae", "a/b", allow=["*"])


def test_who_is_offline_on_purpose_is_mistaken(
    fails: Callable[[Exception], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fails(LocalEntryNotFoundError("offline"))
    with pytest.raises(ConfigError):
        fetch.folder("--vae", "a/b", allow=["*"])


def test_a_full_disk_is_what_it_is(fails: Callable[[Exception], None]) -> None:
    fails(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space") as caught:
        fetch.folder("--vae", "a/b", allow=["*"])
    assert not isinstance(caught.value, Unreachable)
