"""The manifold: nodes of a latent grid whose averages vary smoothly (a generative topographic map)."""
