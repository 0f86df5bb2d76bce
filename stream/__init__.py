"""The service: from a Kafka topic through Redis and a detector to alerts."""
