"""The mathematics of generative models as pure functions in JAX."""
