import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mindbooth.launch.options import LaunchError
from mindbooth.launch.remote import remote_commands

JOB = "--scheduler none --nnodes 2 --master_addr a --master_port 20400 --ssh_leash"
NASTY = 'it\'s $(reboot) `id`; "x" \\ * ~ & | > <\nnext'


def commands(**changed: object) -> tuple[str, ...]:
    usual: dict[str, object] = {
        "folder": Path("/job"),
        "python": Path("/venv/bin/python"),
        "environ": {},
        "options": (),
        "training_flags": (),
        "master_addr": None,
        "master_port": 20400,
    }
    return remote_commands(("a", "b"), **{**usual, **changed})  # type: ignore[arg-type]


def arguments(command: str) -> list[str]:
    """The launcher's own, as the remote shell takes the line apart."""
    words = shlex.split(command)
    return words[words.index("launch") + 1 :]


def test_each_host_gets_the_same_line_but_for_its_node_rank() -> None:
    start = "cd /job || exit 126; exec env /venv/bin/python -m mindbooth.launch launch"
    flags = ("--seed", "1")
    assert commands(training_flags=flags) == (
        f"{start} --node_rank 0 {JOB} -- --seed 1",
        f"{start} --node_rank 1 {JOB} -- --seed 1",
    )


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--hosts", "a,b", "--nproc_per_node", "2"], ["--nproc_per_node", "2"]),
        (["--hosts=a,b", "--log_dir=logs"], ["--log_dir=logs"]),
        (["--max_restarts", "1", "--hostfile", "hosts"], ["--max_restarts", "1"]),
        (["--scheduler", "none", "--nnodes=2", "--node_rank", "0"], []),
        (["--master_port", "auto", "--master_addr", "10.0.0.1"], []),
    ],
)
def test_the_launchers_options_go_along_without_those_that_are_replaced(
    given: list[str], kept: list[str]
) -> None:
    line = commands(options=given)[0]
    assert arguments(line) == ["--node_rank", "0", *JOB.split(), *kept, "--"]


def test_a_master_address_that_was_given_is_kept() -> None:
    assert "--master_addr 10.0.0.1 " in commands(master_addr="10.0.0.1")[1]


@pytest.mark.parametrize(
    ("name", "goes"),
    [
        ("HCCL_CONNECT_TIMEOUT", True),
        ("MS_NODE_TIMEOUT", True),
        ("ASCEND_RT_VISIBLE_DEVICES", True),
        ("GLOG_v", True),
        ("OMP_NUM_THREADS", True),
        ("HF_HOME", True),
        ("WANDB_MODE", True),
        ("PATH", True),
        ("PYTHONPATH", True),
        ("LD_LIBRARY_PATH", True),
        ("XDG_CACHE_HOME", True),
        ("HF_TOKEN", False),
        ("HUGGING_FACE_HUB_TOKEN", False),
        ("WANDB_API_KEY", False),
        ("AWS_SECRET_ACCESS_KEY", False),
        ("HTTPS_PROXY", False),
        ("HCCL_IF_IP", False),
        ("MS_WORKER_IP", False),
        ("MINDBOOTH_JOB", False),
        ("MINDBOOTH_LAUNCHER", False),
        ("RANK_TABLE_FILE", False),
        ("SSH_AUTH_SOCK", False),
        ("HOME", False),
    ],
)
def test_of_the_environment_goes_what_the_job_reads_and_no_secret(name: str, goes: bool) -> None:
    assert (f" {name}=value " in commands(environ={name: "value"})[0]) == goes


@pytest.mark.parametrize("flag", ["--hub_token", "--hub-token", "--hub_token=hf_x"])
def test_a_token_is_refused_as_every_process_list_would_show_it(flag: str) -> None:
    with pytest.raises(LaunchError, match="--hub_token would stand in the process list"):
        commands(training_flags=("--push_to_hub", flag, "hf_x"))


def test_a_shell_takes_nothing_for_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "it's a $HOME; folder"
    package = folder / "mindbooth"
    package.mkdir(parents=True)
    (package / "launch.py").write_text(
        "import os, sys; print([os.getcwd(), os.environ['MS_X'], sys.argv[-1]])"
    )
    line = commands(
        folder=folder,
        python=Path(sys.executable),
        environ={"MS_X": NASTY, "PYTHONPATH": "."},
        training_flags=("--instance_prompt", NASTY),
    )[0]
    told = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert told.stdout == f"{[str(folder), NASTY, NASTY]}\n"


def test_a_host_without_the_folder_starts_nothing() -> None:
    line = commands(folder=Path("/no/such/folder"), python=Path("echo"))[0]
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (126, "")
    assert "/no/such/folder" in done.stderr
