"""`worldvla submit`: runs as Slurm jobs."""
