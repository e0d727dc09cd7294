"""`steadygrad run`: observe a script that knows nothing of steadygrad.

Everything that is loaded before the script is standard library alone (`plan`,
`process`, `imports`, `children`, `session`): importing NumPy or torch first
would change the script's results, since its own ``OMP_NUM_THREADS`` would come
too late. What observes a framework is loaded when the script has imported that
framework, and what explains a run when the script is over.
"""
