"""What crosses from the machine that trains to the device; empty in this release.

It will hold the search space, the latency table and the manifest of a bundle: plain data that
needs nothing but numpy.
"""
