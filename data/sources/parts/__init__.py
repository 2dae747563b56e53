"""The numbers of an action and a state out of the features of a data set."""
