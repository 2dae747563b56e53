"""`worldvla doctor`: is this machine, or this Slurm allocation, fit for a run?"""
