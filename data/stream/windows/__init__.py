"""The windows of a data set, numbered."""
