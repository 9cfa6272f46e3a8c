"""Everything that is shown on a GPU, in one command: python -m bench.gpu.

run.py has the parts in their order and their budgets; process.py runs each in a child process;
machine.py is the GPU as the parts see it; parts/ has their cases; compilation.py compiles all of it
before, pack.py for a machine to which it is carried; table.py makes tables of what was written.
"""
