"""One small interface over the simulators."""
