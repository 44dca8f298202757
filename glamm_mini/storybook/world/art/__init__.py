"""The drawings: a brush that draws in fractions of a thing's box, the things, and the ground they stand on."""
