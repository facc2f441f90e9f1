"""Arbitrary clusters for properties: hosts, devices, addresses and super pods that HCCL takes."""

import string

from hypothesis import settings
from hypothesis import strategies as st

from mindbooth.ranktable.topology import Cluster, Device, Host

PROPERTY = settings(deadline=None, database=None)

IDS = st.text(string.ascii_letters + string.digits + ".:_-/\"'\\", min_size=1, max_size=63)
ADDRESSES = st.ip_addresses().map(str)
DEVICE_IDS = st.integers(0, 15)
SUPER_DEVICE_IDS = st.integers(0, 2**32 - 2)


@st.composite
def clusters(
    draw: st.DrawFn, *, super_pods: bool | None = None, addresses: bool = False
) -> Cluster:
    """Draw a cluster; `super_pods` and `addresses` ask for one with them, None and False let be."""
    pods = draw(st.integers(0 if not super_pods else 1, 0 if super_pods is False else 3))
    hosts = draw(st.integers(1, 2)) * max(pods, 1)
    devices = draw(st.integers(1, 4))
    count = hosts * devices
    unique = draw(st.lists(ADDRESSES, min_size=count, max_size=count, unique=True))
    if (pods == 1 or hosts == 1) and not addresses and draw(st.booleans()):
        unique = [None] * count
    numbers = draw(st.lists(SUPER_DEVICE_IDS, min_size=count, max_size=count, unique=True))
    server_ids = draw(st.lists(IDS, min_size=hosts, max_size=hosts, unique=True))
    pod_ids = draw(st.lists(IDS, min_size=pods, max_size=pods, unique=True))
    members = draw(st.permutations([pod_ids[i % pods] for i in range(hosts)] if pods else []))
    host_ips = draw(st.none() | st.lists(ADDRESSES, min_size=hosts, max_size=hosts))
    return Cluster(
        hosts=tuple(
            Host(
                name=server_ids[h],
                server_id=server_ids[h],
                host_ip=host_ips[h] if host_ips and pods else None,
                super_pod_id=members[h] if pods else None,
                devices=tuple(
                    Device(
                        physical_id=physical_id,
                        address=unique[h * devices + d],
                        super_device_id=numbers[h * devices + d] if pods else None,
                    )
                    for d, physical_id in enumerate(
                        draw(st.lists(DEVICE_IDS, min_size=devices, max_size=devices, unique=True))
                    )
                ),
            )
            for h in range(hosts)
        ),
        source="drawn",
        assumed=False,
    )
