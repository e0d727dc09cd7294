"""Small real trainings that ship with the package: what `steadygrad demo` runs."""
