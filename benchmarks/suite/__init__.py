"""The benchmarks of `make bench`: servers, workloads, measurements, tables and plots."""
