"""Our numbers beside the official ones, and how fast they come."""
