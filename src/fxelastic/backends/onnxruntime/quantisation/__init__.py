"""Branches that compute in 8 bits, made from converted float branches at export."""
