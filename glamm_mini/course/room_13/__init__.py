"""Notebook 13: what it builds, its graders and its pictures."""
