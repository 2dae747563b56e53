"""The network, its mask and its loss, independent of ranks and clusters."""
