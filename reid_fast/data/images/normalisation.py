"""The numbers by which pixels become what a network sees."""

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, for RGB in [0, 1]
STD = (0.229, 0.224, 0.225)
# The published code erases after normalising but with the raw mean, so rectangles are slightly bright, not mean grey.
ERASE_FILL = MEAN
