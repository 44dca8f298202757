"""Diagrams, maps and widgets of the notebooks."""
