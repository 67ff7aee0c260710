"""Ranks and devices: process groups, DDP and FSDP2, activation checkpointing, float8."""
