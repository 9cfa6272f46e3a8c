"""Everything that is shown on a GPU, in one command: python -m bench.gpu.

run.py has the parts in their order and their budgets; process.py runs each in a child process;
machine.py is the GPU as the parts see it; smoke, times, sweeps, step, peers and checks have the
parts' cases; table.py makes the tables from what was written.
"""
