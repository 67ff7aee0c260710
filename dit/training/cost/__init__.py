"""What a training costs: memory, FLOPs, time, and the choice of DDP or FSDP2."""
