"""Faults under real traffic: accepted packets and cut flows while a part breaks (``make test-faults``)."""
