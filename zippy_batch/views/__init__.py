"""Archives for people to look at. Everything is read by way of `dataset`."""
