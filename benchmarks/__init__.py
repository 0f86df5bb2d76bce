"""Seeded benchmarks that assert their answers: `python -m benchmarks [NAME]`. The policy is in README.md."""
