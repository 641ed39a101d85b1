"""Segmentation of images by a U-Net: land, sea and lakes, or images and masks of your own."""
