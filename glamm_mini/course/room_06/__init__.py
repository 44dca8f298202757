"""Notebook 06: what it builds, its graders and its pictures."""
