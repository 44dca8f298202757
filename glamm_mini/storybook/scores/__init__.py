"""Scores that only the embedded world can give: attributes, unseen pairs, kinds of mistakes."""

from glamm_mini.storybook.scores.attributes import mention_scores, region_accuracy, unseen_regions

__all__ = ["mention_scores", "region_accuracy", "unseen_regions"]
