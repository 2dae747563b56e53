"""LIBERO and its robustness suites LIBERO-Pro and LIBERO-Plus."""
