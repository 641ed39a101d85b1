"""Classification of images by a convolutional network: digits, or folders of your own."""
