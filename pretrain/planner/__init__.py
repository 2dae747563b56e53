"""What a training needs of its GPUs, estimated before it runs."""
