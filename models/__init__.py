"""What an event is, what is remembered of it, and how it is scored.

Pure: this package knows no Kafka, no Redis, no HTTP and no environment variable.
"""
