"""How surprising a reading is, given its own entity's past: one pass, constant memory, no labels."""
