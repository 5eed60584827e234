"""A long run of the loss under bad conditions."""
