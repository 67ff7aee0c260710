"""Networks for others: folders that load elsewhere, pipelines of diffusers, the Hugging Face hub."""
