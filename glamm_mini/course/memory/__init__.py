"""The memory calculator: what a configuration needs to run and to train."""
