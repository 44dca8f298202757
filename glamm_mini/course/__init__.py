"""What the notebooks build, grade and draw, one folder a room."""
