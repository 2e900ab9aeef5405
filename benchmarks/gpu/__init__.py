"""The parts of gpu_check.py: what it times, checks and reports."""
