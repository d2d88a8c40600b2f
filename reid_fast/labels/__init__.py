"""Features to pseudo labels: extraction, the Jaccard graph, comparing labelings."""
