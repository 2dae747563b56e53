"""Published weights in and out: Hugging Face's Chameleon layout and our checkpoints."""
