"""What `worldvla inspect` computes and shows: data sets, data order, checkpoints, memory, node placement."""
