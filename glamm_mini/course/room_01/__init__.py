"""Notebook 01: what it builds, its graders and its pictures."""
