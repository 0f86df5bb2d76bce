"""The learning loop: labels come back, a model learns from them, and is let in if it is better."""
