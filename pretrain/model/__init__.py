"""The network, its mask and its loss; nothing here knows of clusters."""
