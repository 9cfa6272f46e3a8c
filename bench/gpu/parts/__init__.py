"""The cases of the parts: smoke, times, sweeps, step (with skinny), peers, checks and tools.

inputs.py makes their inputs. The environment and the ceilings are in ../machine.py, the
compilation in ../compilation.py.
"""
