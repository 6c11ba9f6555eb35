"""What runs, in what order, and what happens on failure."""
