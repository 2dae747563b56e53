"""The model and its distributed trainer."""
