"""The seeded simulator: the real processes of several nodes on a simulated network, disk, clock and scheduler."""
