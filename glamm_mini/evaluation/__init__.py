"""Scores of grounded captions, masks, descriptions and answers: as the official scripts print them, and fixed."""

from glamm_mini.evaluation.predict import predict_samples
from glamm_mini.evaluation.records import TASKS
from glamm_mini.evaluation.score import score_folder
from glamm_mini.evaluation.similarity import SIMILARITIES, get_similarity

__all__ = ["SIMILARITIES", "TASKS", "get_similarity", "predict_samples", "score_folder"]
