"""Import and export of published weights: Hugging Face's Chameleon layout and our checkpoints."""
