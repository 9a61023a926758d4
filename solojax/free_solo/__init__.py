"""FreeSOLO, from a folder of images to a segmenter: Free Mask, labels in files, and the chain."""
