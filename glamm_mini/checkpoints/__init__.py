"""Saved models: the official checkpoints' names and shapes beside ours."""
