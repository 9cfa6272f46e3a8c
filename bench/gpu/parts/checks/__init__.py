"""Whether the kernels are right on the device: against float64, replayed, repeated.

A check raises AssertionError at the first wrong number; its row says how much it compared. The
cases here have full size and come last in a run; parts/smoke.py runs the same checks first, at
small shapes.
"""
