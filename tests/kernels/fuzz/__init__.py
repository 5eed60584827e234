"""Hostile arguments for every operator: an error that says what is wrong, or the right answer; never a crash.

samples.py           arguments that are valid, small, with the edges that sizes can have
mutations.py         what is done to them: other strides and offsets, then dtypes, shapes, values, aliases, devices
judge.py             runs a case and says what is wrong with the outcome; the fallback's checks and reference.py judge
worker.py            cases in processes of their own, that may crash or hang
faults.py            faults planted in copies of the kernels, which have to be found
run.py               all of it (make fuzz)

A case is told by operator, seed and number, and made from nothing else.
"""
