"""Success rates of a policy on a task suite."""
