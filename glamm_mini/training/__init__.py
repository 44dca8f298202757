"""Training: the recipes as data, one trainer for all sizes, its settings, optimizer, logs and checkpoints."""
