"""Labelled faces -> an emotion model."""
