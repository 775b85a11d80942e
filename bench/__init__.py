"""The figures that Nun promises, measured against its peers: `bin/bench`, docs/BENCHMARKS.md."""
