"""what a test needs and this machine lacks -> a failure in CI, where nothing may be skipped, a skip elsewhere"""

import os
from typing import NoReturn

import pytest


def lacking(what: str) -> NoReturn:
    """End the test that needs it: `no browser: `sudo apt-get install chromium``, say."""
    if os.environ.get("CI"):
        pytest.fail(what, pytrace=False)
    pytest.skip(what)
