"""Learning from delayed labels: history, replay, fine-tuning, evaluation, promotion."""
