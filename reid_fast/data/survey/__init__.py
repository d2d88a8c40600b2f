"""All that can be said of a data set before anything is trained on it, and whether it can be."""

from reid_fast.data.survey.facts import Survey, survey
from reid_fast.data.survey.report import findings, to_json

__all__ = ["Survey", "findings", "survey", "to_json"]
