"""Ray: who runs where, and the command line."""
