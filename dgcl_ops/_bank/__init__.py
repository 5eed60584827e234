"""The parts of a memory bank: its rings, their exchange between ranks, its checkpoint."""
