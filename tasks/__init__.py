"""Thin Prefect wrappers over ferflow: paths in, a path out."""
