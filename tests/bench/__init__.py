"""Side-by-side measurements: ratios within one run, against limits. `make bench` runs them; docs/benchmarks.md tells."""
