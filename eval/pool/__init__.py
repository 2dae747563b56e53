"""Evaluation in several processes: simulator workers, policy servers, and the loop that feeds them."""
