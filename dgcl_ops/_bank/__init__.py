"""What a memory bank is made of: its rings, their exchange between processes, its checkpoint."""
