"""Options of the compiler for programs that run once: compiling takes most of their time, and
without optimisation about half of it.
"""

FAST = {"xla_backend_optimization_level": 0}
