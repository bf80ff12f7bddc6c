"""The benchmark of everything that docs/performance.md and the README say of speed."""
