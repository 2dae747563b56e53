"""`worldvla inspect`: data sets, data order, checkpoints, memory and node assignment, one file each."""
