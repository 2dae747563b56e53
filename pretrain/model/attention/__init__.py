"""One attention call over several backends, and the masks they are given."""
