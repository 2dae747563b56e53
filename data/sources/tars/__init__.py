"""Demonstrations in WebDataset's tar files."""
