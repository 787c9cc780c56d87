"""From a trained model and an image to labels, in memory and in files."""
