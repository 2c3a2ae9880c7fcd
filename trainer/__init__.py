"""The trainer: reads the examples of a Retrain command, trains, gates and publishes versions."""
