"""Hostile arguments for every operator: an error that says what is wrong, or the right answer; never a crash.

A case is made from operator, seed and number, and from nothing else.
"""
