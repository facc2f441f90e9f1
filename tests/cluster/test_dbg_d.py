import sys, os, json
sys.path.insert(0, "/work/main/tests/cluster")
from test_slurm import *
def test_dbg(batch):
    job = batch.train("killed", max_train_steps=ENDLESS)
    batch.until_updates(job, "killed", 2)
    print(jobs.token(batch.folder / "killed"))
    for h in batch.slurm.hosts:
        for pid, e in h.processes().items():
            print(h.name, pid, open(f"/proc/{pid}/cmdline").read().replace("\0"," ")[:100], {k: v for k, v in e.items() if k.startswith(("MINDB", "MS_ROLE", "RANK"))})
    print(batch.slurm.output(job)[-1500:])
    batch.slurm.cancel(job)
    assert 0
