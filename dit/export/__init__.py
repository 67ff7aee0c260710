"""Networks for others: folders to move, pipelines of diffusers, the Hugging Face hub."""
