"""Recommendation of items to users: two towers, DLRM, or a factorization machine."""
