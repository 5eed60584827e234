"""What one training step does: checks a batch, chooses its rows, reports on the result."""
