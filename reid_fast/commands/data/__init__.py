"""Make and look at data sets."""
