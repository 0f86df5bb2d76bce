"""State, positions and shared profiles in Redis."""
