"""Answers for the eye: masks over pictures, the answer as one image and as HTML, all in one palette."""
