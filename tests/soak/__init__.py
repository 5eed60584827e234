"""A long run of the loss under adverse conditions."""
