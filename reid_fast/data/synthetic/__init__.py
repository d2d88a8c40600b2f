"""The synthetic set: drawn people before drawn cameras."""
