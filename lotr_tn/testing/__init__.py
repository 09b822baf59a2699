"""Property tests for stacks of updates and their decompositions, for anyone to use.

`laws` holds the laws as plain functions that raise `AssertionError`; `strategies` draws inputs with
the hypothesis package, which the extra `test` installs.
"""
