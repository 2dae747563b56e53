"""Episodes of an evaluation as a LeRobot data set."""
