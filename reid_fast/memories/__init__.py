"""What features are contrasted with: prototypes of clusters, every image, a proxy of each cluster in each camera."""
