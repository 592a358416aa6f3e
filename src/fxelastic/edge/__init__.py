"""The device runtime; empty in this release.

It will load a bundle that was exported on another machine, measure its branches, search for the
best subnet and serve it. It runs where torch is not installed: nothing in here imports torch, not
even inside a function.
"""
