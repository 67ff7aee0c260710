"""What may go wrong: hangs, divergence, preemption."""
