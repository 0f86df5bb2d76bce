"""How well a detector without labels does: published scoring rules for anomaly detection, and the data they are for."""
