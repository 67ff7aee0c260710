"""`dit play`: a page in the browser to sample from a run and to edit images with it."""
