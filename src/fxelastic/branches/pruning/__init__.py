"""Which channels of a block may go together, and the surgery that removes them."""
