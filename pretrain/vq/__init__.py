"""Training of the image tokenizer (VQ-GAN)."""
