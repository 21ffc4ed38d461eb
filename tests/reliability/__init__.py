"""Long campaigns against the store: `python -m tests.reliability CAMPAIGN`. The tests run short ones."""
