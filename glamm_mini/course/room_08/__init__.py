"""Notebook 08: what it builds, its graders and its pictures."""
