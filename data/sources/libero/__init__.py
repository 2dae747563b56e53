"""LIBERO's HDF5 files."""
