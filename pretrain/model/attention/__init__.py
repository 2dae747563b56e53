"""One attention call over several backends, and the form of the mask that each takes."""
