"""Whole-cluster worlds: simulated disks, network and clocks."""
