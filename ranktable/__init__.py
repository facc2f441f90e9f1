"""Which rank sits on which device: topology, placement, HCCL rank tables. Only the stdlib."""
