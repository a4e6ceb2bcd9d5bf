"""The moving-digits generator: a small, real video diffusion pipeline that ships with lvd."""
