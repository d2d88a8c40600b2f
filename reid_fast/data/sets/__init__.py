"""What lies in a folder of images: which layout it has, who is seen on each image, and by which camera."""
