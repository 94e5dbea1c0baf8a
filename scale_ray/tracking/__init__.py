"""Runs: their folders, and MLflow."""
