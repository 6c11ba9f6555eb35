"""What runs, in what order, and what happens on failure."""

import os

# Nothing leaves the machine unless the user says so. Prefect reads these when it is imported and when it starts a
# server, and whatever imports it here comes through this package first.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
