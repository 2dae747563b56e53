"""World-model rollouts and their scores."""
