"""The `worldvla` command, and what it runs on Ray and Slurm."""
