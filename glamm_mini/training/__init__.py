"""Training: the recipes as data, one trainer for all sizes, its settings, optimiser, logs and checkpoints."""
