"""cDAL: a coarse diffusion of labels, its generators and its discriminator."""
