"""What GLaMM is: the one measure that all rooms need, how well two masks agree."""


def iou(a, b):
    """Intersection over union of two boolean masks of one shape, 0..1; not a number where both are empty."""
    return (a & b).sum() / (a | b).sum()
