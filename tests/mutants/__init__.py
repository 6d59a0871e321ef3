"""The code of the fleet document with one rule broken at a time: for each the tests have to fail.

Here are the mutants and what applies and runs them; the tests themselves are in tests/unit and tests/property."""
