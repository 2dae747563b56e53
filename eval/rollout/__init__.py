"""One episode of a policy in a simulator."""
