"""What ends or disturbs a training: bad steps, hangs, preemption, out of memory."""
