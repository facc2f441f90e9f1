"""The examples for other schedulers than Slurm, as far as they go without those.

Manifests are checked against Kubernetes' own schemas. Then everything is run on two hosts, in the
environment that its scheduler gives, with ssh in place of what starts a process on another host.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jobs
import kubernetes_validate
import pytest
import yaml
from hosts import Hosts, Running, wait
from sshd import Sshd

from mindbooth.launch.options import LaunchConfig

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "clusters.md"
SCRIPTS = sorted(EXAMPLES.glob("*/*.sbatch")) + sorted(
    EXAMPLES / name
    for name in ("lsf/train.lsf", "modelarts/start.sh", "pbs/train.pbs", "ssh/train.sh")
)
MANIFESTS = sorted((EXAMPLES / "kubernetes").glob("*.yaml"))
STANDARD = ("v1", "batch/v1", "networking.k8s.io/v1")
UPDATES = 2
ENDLESS = 100_000
CPU = ("--device_target", "CPU", "--nproc_per_node", "1")

# PBS starts a process on another host with the environment that the job came with, LSF with the
# caller's, and as rsh does: the words are joined. Both pass its status on.
STAND_INS = {
    "pbs_tmrsh": """\
#!/bin/bash
host=$1; shift
exec ssh "$host" "env -i PATH=/usr/bin:/bin HOME=/root PBS_JOBID=$PBS_JOBID $(printf '%q ' "$@")"
""",
    "blaunch": """\
#!/bin/bash
host=$1; shift
exec ssh "$host" "cd $PWD; $(export -p | grep -E ' (PATH|LSB_[A-Z_]+)='); exec $*"
""",
}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def of_kind(manifest: str, kind: str) -> dict[str, Any]:
    found = documents(EXAMPLES / "kubernetes" / manifest)
    return next(document for document in found if document["kind"] == kind)


def pod_templates(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a job of any make."""
    spec = document["spec"]
    tasks = [*spec.get("tasks", ()), *spec.get("replicaSpecs", {}).values()]
    return [task["template"] for task in tasks or [spec]]


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_scripts_are_valid_bash(script: Path) -> None:
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("manifest", MANIFESTS, ids=name_of)
def test_manifests_keep_to_the_schemas_of_kubernetes(manifest: Path) -> None:
    """Those of Volcano and MindCluster as far as they are Kubernetes': the pods."""
    for document in documents(manifest):
        checked = [document]
        if document["apiVersion"] not in STANDARD:
            checked = [
                {
                    "apiVersion": "v1",
                    "kind": "PodTemplate",
                    "metadata": {"name": "p"},
                    "template": t,
                }
                for t in pod_templates(document)
            ]
        for resource in checked:
            kubernetes_validate.validate(
                resource, kubernetes_validate.latest_version(), strict=True
            )


@pytest.mark.parametrize("manifest", MANIFESTS, ids=name_of)
def test_pods_have_more_time_to_end_than_workers_to_save(manifest: Path) -> None:
    grace = LaunchConfig().grace_seconds
    for template in pod_templates(documents(manifest)[-1]):
        assert template["spec"]["terminationGracePeriodSeconds"] > grace + 30


def test_the_indexed_job_agrees_with_itself() -> None:
    service, policy, job = (
        of_kind("indexed-job.yaml", kind) for kind in ("Service", "NetworkPolicy", "Job")
    )
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    pods = {"job-name": name}
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == pods
    assert pod["subdomain"] == service["metadata"]["name"]
    args = pod["containers"][0]["args"]
    assert f"--master_addr={name}-0.{pod['subdomain']}" in args
    assert f"--nnodes={spec['completions']}" in args
    assert spec["completions"] == spec["parallelism"]
    assert spec["backoffLimit"] % spec["completions"] == 0


def test_the_volcano_job_agrees_with_itself() -> None:
    job, table = of_kind("volcano.yaml", "Job"), of_kind("volcano.yaml", "ConfigMap")
    (task,) = job["spec"]["tasks"]
    assert job["spec"]["minAvailable"] == task["replicas"]
    assert table["metadata"]["name"] == f"rings-config-{job['metadata']['name']}"
    volumes = {volume["name"]: volume for volume in task["template"]["spec"]["volumes"]}
    assert volumes["ascend-910-config"]["configMap"]["name"] == table["metadata"]["name"]


def test_the_ascend_job_agrees_with_itself() -> None:
    spec = of_kind("ascendjob.yaml", "AscendJob")["spec"]
    replicas = [replica["replicas"] for replica in spec["replicaSpecs"].values()]
    assert spec["runPolicy"]["schedulingPolicy"]["minAvailable"] == sum(replicas)
    for template in pod_templates({"spec": spec}):
        (container,) = template["spec"]["containers"]
        assert container["name"] == "ascend"
        msrun, link = container["ports"]
        assert (msrun["name"], link["containerPort"]) == (
            "ascendjob-port",
            msrun["containerPort"] + 1,
        )


def test_dog_yaml_is_the_readme_s_main_job() -> None:
    block = re.search(r"```bash\n(mindbooth launch .*? --instance_data_dir dog .*?)```",
                      (ROOT / "README.md").read_text(), re.DOTALL)  # fmt: skip
    assert block is not None
    words = shlex.split(block[1].replace("\\\n", " "))
    flags = words[words.index("--") + 1 :]
    told = dict(zip(flags[::2], flags[1::2], strict=True))
    config = yaml.safe_load((EXAMPLES / "dog.yaml").read_text())
    assert config.pop("checkpointing_steps") < int(told["--max_train_steps"])
    assert {f"--{name}": str(value) for name, value in config.items()} == told


def test_the_page_tells_of_every_example() -> None:
    page = PAGE.read_text()
    untold = [name_of(path) for path in SCRIPTS + MANIFESTS if name_of(path) not in page]
    assert not untold


def test_the_links_of_the_page_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", PAGE.read_text())
    assert links
    assert not [link for link in links if not (PAGE.parent / link).exists()]


@dataclass(frozen=True, kw_only=True)
class Site:
    """Two hosts, and a folder that both see, whose dog.yaml is a small training into `out`."""

    hosts: Hosts
    daemons: frozenset[int]
    folder: Path
    path: str

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def run(self, host: int, command: Sequence[str | Path], **environ: str) -> Running:
        return self.hosts[host].popen(command, cwd=self.folder, PATH=self.path, **environ)

    def script(self, name: str, host: int, *, updates: int = UPDATES, **environ: str) -> Running:
        """Run a script as a scheduler does, but for two workers on the CPU."""
        flags = ["--config", "dog.yaml", "--max_train_steps", str(updates)]
        return self.run(host, ["bash", EXAMPLES / name, *CPU, "--", *flags], **environ)

    def pod(self, host: int, manifest: str, template: int = 0, **environ: str) -> Running:
        """Run what a pod of a job would."""
        pod = pod_templates(documents(EXAMPLES / "kubernetes" / manifest)[-1])[template]
        container = pod["spec"]["containers"][0]
        words = [*container["command"], *container["args"]]
        words = [word.replace("/shared", str(self.folder)) for word in words]
        cut = words.index("--")
        given = {one["name"]: one["value"] for one in container["env"] if "value" in one}
        return self.run(host, [*words[:cut], *CPU, *words[cut:]], **given, **environ)

    def until_updates(self, running: Running, count: int) -> None:
        running.until(lambda: jobs.updates(self.output) >= count)

    def left(self) -> set[int]:
        """What is alive on any host, but for sshd."""
        return {pid for host in self.hosts for pid in host.processes()} - self.daemons


@pytest.fixture
def site(hosts: Hosts, sshd: Sshd, tiny_pipeline: Path, mini_sdxl: Path, tmp_path: Path) -> Site:
    flags = jobs.training(
        tiny_pipeline,
        mini_sdxl / "instance",
        output_dir=tmp_path / "shared" / "out",
        latent_cache_dir=tmp_path / "shared" / "cache",
        report_to="none",
    )
    config = {
        flag.removeprefix("--"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)
    }
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "dog.yaml").write_text(
        yaml.safe_dump(config | {"max_train_steps": UPDATES})
    )
    (tmp_path / "bin").mkdir()
    for name, text in STAND_INS.items():
        program = tmp_path / "bin" / name
        program.write_text(text)
        program.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    daemons = frozenset(pid for host in hosts for pid in host.processes())
    return Site(hosts=hosts, daemons=daemons, folder=tmp_path / "shared", path=path)


def pbs(site: Site, **options: Any) -> list[Running]:
    nodes = Path("/run/nodes")  # of the first host alone; two slots a host
    site.hosts[0].run(["sh", "-c", f"printf 'n1\\nn1\\nn2\\nn2\\n' > {nodes}"])
    environ = {"PBS_JOBID": "7.pbs", "PBS_NODEFILE": str(nodes), "PBS_O_WORKDIR": str(site.folder)}
    environ |= {"PBS_ENVIRONMENT": "PBS_BATCH", "PBS_NUM_NODES": "2"}
    return [site.script("pbs/train.pbs", 0, **options, **environ)]


def lsf(site: Site, **options: Any) -> list[Running]:
    environ = {"LSB_JOBID": "7", "LSB_MCPU_HOSTS": "n1 1 n2 1", "LSB_HOSTS": "n1 n2"}
    return [site.script("lsf/train.lsf", 0, **options, **environ)]


def modelarts(site: Site) -> list[Running]:
    names = ",".join(site.hosts.addresses[host.name] for host in site.hosts)
    common = {
        "MA_NUM_HOSTS": "2",
        "MA_NUM_GPUS": "1",
        "VC_WORKER_NUM": "2",
        "VC_WORKER_HOSTS": names,
    }
    common |= {"SHARED_DIR": str(site.folder)}
    return [
        site.script("modelarts/start.sh", rank, VC_TASK_INDEX=str(rank),
                    MA_CURRENT_IP=host.address, **common)
        for rank, host in enumerate(site.hosts)
    ]  # fmt: skip


def volcano(site: Site) -> list[Running]:
    names = ",".join(pod_name(site, "mindbooth-worker", rank) for rank in (0, 1))
    common = {"VC_WORKER_NUM": "2", "VC_WORKER_HOSTS": names}
    return [
        site.pod(rank, "volcano.yaml", VC_TASK_INDEX=str(rank), VK_TASK_INDEX=str(rank), **common)
        for rank in (0, 1)
    ]


def ascendjob(site: Site) -> list[Running]:
    common = {"MS_SCHED_HOST": site.hosts[0].address, "MS_SCHED_PORT": "2222", "MS_SERVER_NUM": "0"}
    common |= {
        "MS_LOCAL_WORKER": "1",
        "MS_WORKER_NUM": "2",
        "NPU_POD": "true",
        "MINDX_TASK_ID": "7",
    }
    return [
        site.pod(rank, "ascendjob.yaml", rank, MS_NODE_RANK=str(rank), MS_ROLE=role, **common)
        for rank, role in enumerate(("MS_SCHED", "MS_WORKER"))
    ]


def indexed_job(site: Site) -> list[Running]:
    for rank in (0, 1):
        pod_name(site, "mindbooth", rank)
    return [site.pod(rank, "indexed-job.yaml", JOB_COMPLETION_INDEX=str(rank)) for rank in (0, 1)]


def ssh(site: Site) -> list[Running]:
    (site.folder / "hostfile").write_text("n1\nn2\n")
    return [site.script("ssh/train.sh", 0, HOSTFILE="hostfile")]


def pod_name(site: Site, job: str, rank: int) -> str:
    """Make a host answer to the name of a pod, as Kubernetes' DNS does."""
    name = f"{job}-{rank}.mindbooth"
    with (site.hosts.folder / "hosts").open("a") as known:
        known.write(f"{site.hosts[rank].address} {name}\n")
    return name


@pytest.mark.parametrize(
    "start",
    [pbs, volcano, indexed_job, ssh]
    + [pytest.param(start, marks=pytest.mark.slow) for start in (lsf, modelarts, ascendjob)],
)
def test_two_hosts_train(site: Site, start: Callable[[Site], list[Running]]) -> None:
    running = start(site)
    assert [one.end() for one in running] == [0] * len(running), [one.told for one in running]
    log = site.output / "launch" / "attempt-1" / "worker_0.log"
    assert "a device x 2 devices" in log.read_text()
    assert jobs.learned(site.output) > 0
    wait(lambda: not site.left(), 15)


@pytest.mark.parametrize(("start", "number"), [(pbs, signal.SIGTERM), (lsf, signal.SIGUSR1)])
def test_the_scheduler_s_signal_saves_and_the_script_ends_with_75(
    site: Site, start: Callable[..., list[Running]], number: signal.Signals
) -> None:
    """The signal comes to all processes of the script's session."""
    (running,) = start(site, updates=ENDLESS)
    site.until_updates(running, 2)
    assert running.pid is not None
    session = os.getsid(running.pid)
    for pid in site.hosts[0].processes():
        if os.getsid(pid) == session:
            os.kill(pid, number)
    assert running.end() == 75, running.told
    assert (site.output / f"checkpoint-{jobs.updates(site.output)}" / "state.json").exists()
    wait(lambda: not site.left(), 15)
