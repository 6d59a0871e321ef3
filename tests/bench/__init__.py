"""Side-by-side measurements: ratios within one run, against limits. `make bench` runs them; see docs/benchmarks.md."""
