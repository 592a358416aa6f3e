"""The state of the device: what is used of its resources, and what will be."""
