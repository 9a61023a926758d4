"""Trained segmenters at work: loading one, predicting, scoring."""
