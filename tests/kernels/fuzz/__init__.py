"""Hostile arguments for every operator must give an error that says what is wrong, or the right answer. Never a crash.

A case depends only on operator, seed and number.
"""
