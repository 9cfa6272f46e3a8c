"""The cases of the parts: smoke, times, sweeps, step (with skinny), peers, checks and tools.

inputs.py has what they work on. The environment and the ceilings are in ../machine.py, the
compilation in ../compilation.py.
"""
