"""Simulators, policies, rollouts and reports."""
