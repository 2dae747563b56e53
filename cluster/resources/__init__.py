"""Ray sessions and which node runs what."""
