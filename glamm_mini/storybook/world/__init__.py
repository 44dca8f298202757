"""Scenes: what is where, how it is drawn, which pixels are whose."""
