"""portraits that installed packages ship -> a short clip with two people, motion and sound."""
