"""Our step time and memory beside TRL's: the parts of benchmarks/versus_trl.py."""
