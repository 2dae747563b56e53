"""Which window is where in which step: pure functions of the index, the seed and the number of the step."""
