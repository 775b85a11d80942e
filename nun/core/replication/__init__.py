"""What goes between nodes, and who is primary: the replicator's core."""
