"""Episodes in memory: read together, tokenised, and cut into the time steps of windows."""
