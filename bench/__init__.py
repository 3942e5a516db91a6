"""Measures the service beside what it is compared with: `python -m bench`. README.md says what each row means."""
