"""From micrographs to particle images: boxes, contrast, scale, background. Every step is a function of arrays."""
