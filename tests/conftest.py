"""What holds for every test: its Hypothesis profile and the time after which it counts as hanging."""

import os

from hypothesis import settings

from tests.deadlines import within

# The machine's speed is no property of ours, so examples have no deadline. A test draws the same examples every time:
# `./dev fuzz` is where new ones, and many, are looked for.
settings.register_profile("default", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("fuzz", deadline=None, derandomize=False, max_examples=20_000)
settings.load_profile("default")

# pytest-timeout takes this before the 120 of pyproject.toml.
os.environ.setdefault("PYTEST_TIMEOUT", str(within(120)))
