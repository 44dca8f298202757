"""Notebook 00: what it builds, its graders and its pictures."""
