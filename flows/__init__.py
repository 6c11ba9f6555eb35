"""What runs, in what order, and what happens on failure."""

import os
import sys

# Nothing leaves the machine unless the user says so. Prefect reads these when it is imported and when it starts a
# server, and whatever imports it here comes through this package first.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

# What ferflow logs outside of a run goes to no run.
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
# By its heartbeat a run is known to be alive, see flows/reconcile.py; Prefect takes no shorter time between two.
os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")

# A run outlives a server whose database is away: such a server answers with 500, which Prefect takes for final.
os.environ.setdefault("PREFECT_CLIENT_RETRY_EXTRA_CODES", "500")
# What a server that is away could not be told, a screen of text each.
os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")

# The process of a worker's run has loaded Prefect by now, and with it the settings as they were before.
if "prefect.context" in sys.modules:
    sys.modules["prefect.context"].refresh_global_settings_context()
