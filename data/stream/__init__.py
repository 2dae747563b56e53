"""From an index to the token batches of one rank."""
