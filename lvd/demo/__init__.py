"""A generator of scenes: a small, real video diffusion pipeline that ships with lvd, and its labels."""

import transformers

transformers.utils.logging.set_verbosity_error()  # before diffusers: its imports give advice
transformers.utils.logging.disable_progress_bar()
