"""The parts of a decoding session: prompts, buffers at fixed addresses, and steps captured as CUDA graphs."""
