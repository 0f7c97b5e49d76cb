"""What scripts/bench.py measures: one module for each kind of work, all with timing.py."""
