"""Channel attention for convolutional networks."""
