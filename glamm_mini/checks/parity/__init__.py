"""Our numbers beside the official model's: the same weights, the same inputs, and where they first differ."""
