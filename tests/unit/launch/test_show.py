import json
from dataclasses import replace

from machines import DESK, SERVER, plan_for

from mindbooth.launch import show
from mindbooth.launch.options import LaunchConfig
from mindbooth.launch.plan import Site

EIGHT = LaunchConfig(device_target="Ascend", nproc_per_node=8)


def test_the_text_shows_all_that_happens() -> None:
    plan = plan_for(LaunchConfig(devices=(4, 5)), SERVER)
    text = show.as_text(plan)
    assert text.startswith("2 workers on Ascend, host server (/dev/davinci*), port 23456\n")
    assert "  1     server  5       192.168.5.1  /srv/out/launch/attempt-3/worker_1.log\n" in text
    assert "  ASCEND_RT_VISIBLE_DEVICES=4,5\n" in text
    assert "  PATH=/venv/bin:$PATH\n" in text
    assert "  rank 1: RANK_ID=1 MS_NODE_ID=1 DEVICE_ID=1\n" in text
    assert "rank table (handed to msrun: every id and address" in text
    assert " ".join(plan.command) in text


def test_assumed_devices_are_called_assumed() -> None:
    plan = plan_for(EIGHT, DESK)
    assert "devices assumed" in show.headline(plan)
    assert show.as_text(plan).count("  assumed  ") == 8
    document = json.loads(show.as_json(plan))
    assert document["assumed"] is True
    assert all(device["assumed"] for device in document["hosts"][0]["devices"])


def test_json_holds_the_table_the_command_and_each_workers_environment() -> None:
    plan = plan_for(EIGHT, DESK)
    document = json.loads(show.as_json(plan))
    assert document["rank_table"]["content"] == json.loads(plan.table.text)
    assert document["command"] == list(plan.command)
    assert [worker["environment"]["DEVICE_ID"] for worker in document["workers"]] == list(
        "01234567"
    )
    assert document["environment"]["by_msrun"]["RANK_SIZE"] == "8"


def test_a_precompute_is_called_so() -> None:
    plan = plan_for(LaunchConfig(job="precompute", nproc_per_node=2), DESK)
    assert show.headline(plan).startswith("precompute: 2 workers on CPU, host desk")
    assert "-m mindbooth.trainer precompute --device_target CPU\n" in show.as_text(plan)
    assert json.loads(show.as_json(plan))["work"] == "precompute"


def test_another_host_is_to_do_the_same() -> None:
    site = Site(master_port=23456, nnodes=2)
    command = show.command_of_host(LaunchConfig(job="precompute"), site, 1)
    assert command.endswith(" --job precompute --")


def test_no_secret_is_shown() -> None:
    apart = ("--hub_token", "s3cret", "--hub-token", "s3cret")
    flags = (*apart, "--hub_token=s3cret", "--hub-token=s3cret", "--seed", "0")
    plan = plan_for(LaunchConfig(training_flags=flags), DESK)
    assert plan.command.count("s3cret") == 2
    shown = show.as_text(plan) + show.as_json(plan)
    assert "s3cret" not in shown
    assert "--hub_token=***" in shown


def test_the_inherited_environment_is_not_shown() -> None:
    environ = {"AWS_SECRET_ACCESS_KEY": "s3cret", "PATH": "/home/me/bin"}
    plan = plan_for(LaunchConfig(), replace(DESK, environ=environ))
    assert "s3cret" not in show.as_json(plan)
    assert "/home/me" not in show.as_json(plan)


def test_notes_come_last() -> None:
    machine = replace(DESK, environ={"OMP_NUM_THREADS": "2"})
    assert show.as_text(plan_for(LaunchConfig(), machine)).endswith(
        "notes\n  OMP_NUM_THREADS=2 stays as it was set.\n"
    )
