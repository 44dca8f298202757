"""Notebook 02: what it builds, its graders and its pictures."""
