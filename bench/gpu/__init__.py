"""All checks and timings on a GPU in one command: python -m bench.gpu.

run.py has the parts in their order and their budgets; process.py runs each in a child process;
machine.py is the GPU as the parts see it; parts/ has their cases; compilation.py compiles every
kernel before the others run, and pack.py does so for another machine; table.py makes tables of the
results.
"""
