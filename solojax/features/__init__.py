"""What frozen backbones see: features of images, probes of them, matches between views."""
